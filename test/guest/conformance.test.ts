/** The conformance suite inside a guest, over virtiofs, with the guest kernel's own credentials. */
import { GuestDriver } from '../conformance/guest.ts';
import { conformance } from '../conformance/suite.ts';

conformance('virtiofs', () => GuestDriver.start('virtiofs'));
