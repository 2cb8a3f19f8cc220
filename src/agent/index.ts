export { Agent, type AgentEvent, type AgentOptions } from './agent.ts';
export { AgentError, type AgentErrorCode } from './agent-error.ts';
export { AgentTree, type AgentTreeOptions } from './agent-tree.ts';
export { LONGEST_WAIT_SECONDS, type OnTokenDenied, onTokenDenied, runAgent, whoInWords } from './command.ts';
export { parseServerAddress, type ServerAddress } from './server-address.ts';
export { callerFromProc } from './who.ts';
