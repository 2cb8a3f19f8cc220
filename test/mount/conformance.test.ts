/** The conformance suite over a mount through /dev/fuse, with processes of real identities. */
import { MountDriver } from '../conformance/mount.ts';
import { conformance } from '../conformance/suite.ts';

conformance('mount', () => Promise.resolve(new MountDriver()));
