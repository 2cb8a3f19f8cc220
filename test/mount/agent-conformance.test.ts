/** The conformance suite over the mount of an agent, with processes of real identities. */
import { AgentMountDriver } from '../conformance/agent-mount.ts';
import { conformance } from '../conformance/suite.ts';

conformance('agent', () => Promise.resolve(new AgentMountDriver()));
