/** The conformance suite over a FUSE session in this process: every call is encoded as a kernel would send it. */
import { SessionDriver } from './session.ts';
import { conformance } from './suite.ts';

conformance('session', () => Promise.resolve(new SessionDriver()));
