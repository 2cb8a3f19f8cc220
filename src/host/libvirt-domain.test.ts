import assert from 'node:assert/strict';
import { test } from 'node:test';
import { domainParts, metadataChannel, wholeDomain } from './libvirt-domain.ts';

const wish = { domain: 'web-1', accelerator: 'kvm', memoryMiB: 2048, vcpus: 2 } as const;

test('wholeDomain has what was asked for, the device, and a console', () => {
  const text = wholeDomain(
    '/run/porthole/vms/web-1/fs/fs.sock',
    'metadata',
    { ...wish, disk: '/srv/web-1.qcow2', diskFormat: 'qcow2' },
    'x64',
  );
  assert.equal(
    text,
    `<domain type='kvm'>
  <name>web-1</name>
  <memory unit='MiB'>2048</memory>
  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
  </os>
  <features>
    <acpi/>
  </features>
  <cpu mode='host-passthrough'/>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/srv/web-1.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <filesystem type='mount'>
      <driver type='virtiofs' queue='1024'/>
      <source socket='/run/porthole/vms/web-1/fs/fs.sock'/>
      <target dir='metadata'/>
    </filesystem>
    <serial type='pty'/>
    <console type='pty'/>
  </devices>
</domain>
`,
  );
});

test('wholeDomain boots a kernel directly, under emulation and on arm64', () => {
  const kernel = { ...wish, accelerator: 'tcg', kernel: '/srv/kernel', initrd: '/srv/initrd' } as const;
  const text = wholeDomain('/run/s', 'metadata', { ...kernel, kernelArguments: 'quiet a="b & c"' }, 'arm64');
  assert.match(text, /^<domain type='qemu'>$/m);
  assert.match(text, /^ {2}<cpu mode='maximum'\/>$/m);
  assert.match(
    text,
    / {2}<os>\n {4}<type arch='aarch64' machine='virt'>hvm<\/type>\n {4}<kernel>\/srv\/kernel<\/kernel>\n {4}<initrd>\/srv\/initrd<\/initrd>\n {4}<cmdline>quiet a=&quot;b &amp; c&quot;<\/cmdline>\n {2}<\/os>/,
  );
  assert.match(wholeDomain('/run/s', 'metadata', wish, 'arm64'), /<os firmware='efi'>/);
});

test('wholeDomain has the port of a metadata server among its devices', () => {
  const devices = metadataChannel('/run/s.sock', 'org.porthole.metadata');
  const text = wholeDomain('/run/s', 'metadata', { ...wish, devices }, 'x64');
  assert.ok(
    text.includes(`    <channel type='unix'>
      <source mode='connect' path='/run/s.sock'>
        <reconnect enabled='yes' timeout='1'/>
      </source>
      <target type='virtio' name='org.porthole.metadata'/>
    </channel>
  </devices>`),
    text,
  );
});

test('no value ends its element or attribute', () => {
  const hostile = `/srv/'"><devices>&</x>`;
  const texts = [
    domainParts(hostile, hostile),
    wholeDomain(hostile, hostile, {
      ...wish,
      domain: hostile,
      disk: hostile,
      diskFormat: 'raw',
      kernel: hostile,
      initrd: hostile,
      kernelArguments: hostile,
    }),
    `<devices>${metadataChannel(hostile, hostile)}`,
  ];
  for (const text of texts) {
    assert.ok(text.includes('&apos;&quot;&gt;&lt;devices&gt;&amp;&lt;/x&gt;'));
    assert.equal(text.split('<devices>').length, 2);
    assert.ok(!text.includes('</x>'));
  }
});
