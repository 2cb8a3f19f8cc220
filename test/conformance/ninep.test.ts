/** The conformance suite over a 9P2000.L session in this process: every call is encoded as v9fs would send it. */
import { NinepDriver } from './ninep.ts';
import { conformance } from './suite.ts';

conformance('ninep', () => Promise.resolve(new NinepDriver()));
