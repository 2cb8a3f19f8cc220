export { Agent, type AgentEvent, type AgentOptions } from './agent.ts';
export { AgentError, type AgentErrorCode } from './agent-error.ts';
export { parseServerAddress, type ServerAddress } from './server-address.ts';
export { type Identity, identify } from './who.ts';
