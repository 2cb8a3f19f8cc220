import assert from 'node:assert/strict';
import { test } from 'node:test';
import { valuesInC } from '../../test/abi/compile.ts';
import * as vu from './messages.ts';
import { ring } from './virtqueue.ts';

test("rings and messages are laid out as the kernel's headers say", () => {
  const expected = new Map<string, bigint>();
  const expressions = new Map<string, string>();
  const fact = (value: number, expression: string) => {
    expected.set(expression, BigInt(value));
    expressions.set(expression, expression);
  };
  fact(ring.descBytes, 'sizeof(struct vring_desc)');
  fact(ring.descLengthWord * 4, 'offsetof(struct vring_desc, len)');
  fact(ring.descFlagsWord * 4, 'offsetof(struct vring_desc, flags)');
  fact(ring.descFlagsWord * 4 + 2, 'offsetof(struct vring_desc, next)');
  fact(ring.availIdx * 2, 'offsetof(struct vring_avail, idx)');
  fact(ring.availRing * 2, 'offsetof(struct vring_avail, ring)');
  fact(ring.usedIdx * 2, 'offsetof(struct vring_used, idx)');
  fact(ring.usedRing32 * 4, 'offsetof(struct vring_used, ring)');
  fact(ring.usedEntryWords * 4, 'sizeof(struct vring_used_elem)');
  fact(4, 'offsetof(struct vring_used_elem, len)');
  for (const [name, value] of Object.entries({
    VRING_DESC_F_NEXT: ring.NEXT,
    VRING_DESC_F_WRITE: ring.WRITE,
    VRING_DESC_F_INDIRECT: ring.INDIRECT,
    VRING_AVAIL_F_NO_INTERRUPT: ring.NO_INTERRUPT,
    VRING_USED_F_NO_NOTIFY: ring.NO_NOTIFY,
    VIRTIO_RING_F_INDIRECT_DESC: vu.VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX: vu.VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_VERSION_1: vu.VIRTIO_F_VERSION_1,
  }))
    fact(value, name);
  fact(vu.VringState.sizeBytes, 'sizeof(struct vhost_vring_state)');
  fact(vu.VringState.num.offset, 'offsetof(struct vhost_vring_state, num)');
  fact(vu.VringAddr.sizeBytes, 'sizeof(struct vhost_vring_addr)');
  fact(vu.VringAddr.flags.offset, 'offsetof(struct vhost_vring_addr, flags)');
  fact(vu.VringAddr.desc.offset, 'offsetof(struct vhost_vring_addr, desc_user_addr)');
  fact(vu.VringAddr.used.offset, 'offsetof(struct vhost_vring_addr, used_user_addr)');
  fact(vu.VringAddr.avail.offset, 'offsetof(struct vhost_vring_addr, avail_user_addr)');
  fact(vu.VringAddr.log.offset, 'offsetof(struct vhost_vring_addr, log_guest_addr)');
  const headers = ['linux/virtio_config.h', 'linux/virtio_ring.h', 'linux/vhost_types.h'];
  assert.deepEqual(valuesInC(headers, expressions), expected);
});
