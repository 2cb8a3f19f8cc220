/** The conformance suite over direct calls: no protocol, no kernel. */
import { DirectDriver } from './direct.ts';
import { conformance } from './suite.ts';

conformance('direct', () => Promise.resolve(new DirectDriver()));
