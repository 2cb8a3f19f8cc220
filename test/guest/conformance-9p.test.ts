/** The conformance suite inside a guest, through Linux's own 9P client over a virtio console. */
import { GuestDriver } from '../conformance/guest.ts';
import { conformance } from '../conformance/suite.ts';

conformance('v9fs', () => GuestDriver.start('console'));
conformance('v9fs-client', () => GuestDriver.start('console, access=client'));
