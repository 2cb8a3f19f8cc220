/**
 * The conformance suite inside a guest, through Linux's own 9P client: over a virtio console and over vsock, with `access=user` and
 * with `access=client`. PORTHOLE_CONFORMANCE=all runs all of it in all four.
 */
import { GuestDriver } from '../conformance/guest.ts';
import { conformance } from '../conformance/suite.ts';

conformance('v9fs', () => GuestDriver.start('console'));

// What the guest's kernel decides by ACLs.
conformance('v9fs-client', () => GuestDriver.start('console, access=client'), {
  topics: ['permissions', 'extended attributes'],
});

// What the line has to do with.
conformance('v9fs', () => GuestDriver.start('vsock'), {
  by: 'vsock',
  topics: ['open with O_TRUNC', 'rename', 'several at once'],
});

if (process.env['PORTHOLE_CONFORMANCE'] === 'all')
  conformance('v9fs-client', () => GuestDriver.start('vsock, access=client'), { by: 'vsock' });
