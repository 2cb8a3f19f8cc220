import assert from 'node:assert/strict';
import { test } from 'node:test';
import { attachWords } from './attachment.ts';

test('attachWords tells monitors with a vsock device of their own where one port of it must lead', () => {
  const machine = { memoryMiB: 1024, vcpus: 1, domain: 'web one, two', accelerator: 'kvm' } as const;
  const paths = { name: 'web-1', vhostUser: '/run/p/fs.sock' };
  assert.equal(attachWords(paths, machine).vsock, undefined);
  const vsock = { front: '/run/p/vsock.vhost-user', host: '/run/p/vsock', ofOthers: '/run/p/9p_564' };
  assert.deepEqual(attachWords({ ...paths, vsock }, machine).vsock, {
    hostPath: '/run/p/vsock',
    qemu: ['-chardev', 'socket,id=vsock,path=/run/p/vsock.vhost-user', '-device', 'vhost-user-vsock-pci,chardev=vsock'],
    mount: 'mount -t porthole vsock:564 /run/metadata',
    ofOthers: {
      socketPath: '/run/p/9p_564',
      cloudHypervisor: ['--vsock', 'cid=3,socket=/run/web-1.vsock'],
      firecracker: { guest_cid: 3, uds_path: '/run/web-1.vsock' },
      mount: 'mount -t porthole vsock:564 /run/metadata -o token-file=/run/porthole.token',
    },
  });
});
