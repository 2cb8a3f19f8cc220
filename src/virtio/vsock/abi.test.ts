import assert from 'node:assert/strict';
import { test } from 'node:test';
import { valuesInC } from '../../../test/abi/compile.ts';
import * as abi from './abi.ts';

test("packets are laid out as the kernel's header says", () => {
  const expected = new Map<string, bigint>();
  const fact = (value: number, expression: string) => void expected.set(expression, BigInt(value));
  fact(abi.HEADER_BYTES, 'sizeof(struct virtio_vsock_hdr)');
  const names = 'src_cid dst_cid src_port dst_port len type op flags buf_alloc fwd_cnt'.split(' ');
  assert.equal(abi.Header.fields.length, names.length);
  for (const [i, name] of names.entries())
    fact(abi.Header[abi.Header.fields[i]!].offset, `offsetof(struct virtio_vsock_hdr, ${name})`);
  fact(abi.Config.sizeBytes, 'sizeof(struct virtio_vsock_config)');
  fact(abi.HOST_CID, 'VMADDR_CID_HOST');
  for (const [name, value] of Object.entries({
    TYPE_STREAM: abi.TYPE_STREAM,
    OP_REQUEST: abi.OP_REQUEST,
    OP_RESPONSE: abi.OP_RESPONSE,
    OP_RST: abi.OP_RST,
    OP_SHUTDOWN: abi.OP_SHUTDOWN,
    OP_RW: abi.OP_RW,
    OP_CREDIT_UPDATE: abi.OP_CREDIT_UPDATE,
    OP_CREDIT_REQUEST: abi.OP_CREDIT_REQUEST,
    SHUTDOWN_RCV: abi.SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND: abi.SHUTDOWN_SEND,
  }))
    fact(value, `VIRTIO_VSOCK_${name}`);
  const expressions = new Map([...expected.keys()].map((name) => [name, name]));
  // vm_sockets.h names struct sockaddr and brings none.
  const headers = ['sys/socket.h', 'linux/virtio_vsock.h', 'linux/vm_sockets.h'];
  assert.deepEqual(valuesInC(headers, expressions), expected);
});
