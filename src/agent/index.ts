export { Agent, type AgentEvent, type AgentOptions } from './agent.ts';
export { AgentError, type AgentErrorCode } from './agent-error.ts';
export { AgentTree, type AgentTreeOptions } from './agent-tree.ts';
export { isMountedAt } from './mounts.ts';
export { parseServerAddress, type ServerAddress } from './server-address.ts';
export { callerFromProc, type Identity, identify } from './who.ts';
