import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readlinkSync, rmSync, statSync } from 'node:fs';
import { request } from 'node:http';
import { createConnection } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { temporaryStore } from '../../test/store/temporary.ts';
import { until } from '../../test/until.ts';
import { facadeNames, SerialMux } from '../imds/index.ts';
import { buildOf } from '../parts/index.ts';
import { type Launcher, SessionLauncher } from '../qemu/index.ts';
import { type MetadataServerRecord, metadataClouds, type VmRecord } from '../records/index.ts';
import { openStores } from '../store/index.ts';
import type { AuditRecord } from '../tree/index.ts';
import type { HostParts } from './host-parts.ts';
import { HostedVm } from './hosted-vm.ts';
import { parseSpec } from './spec-file.ts';
import { checkedSpec } from './tree-port.ts';
import { TreeStore } from './tree-store.ts';
import { VmTree } from './vm-tree.ts';

const recordOf = (name: string, metadataServer: MetadataServerRecord): VmRecord => ({
  id: `i-${Buffer.from(name).toString('hex').padStart(17, '0')}`,
  name,
  account: 'default',
  kind: 'attached',
  type: 'attached',
  vcpus: 0,
  memoryMiB: 0,
  network: { mode: 'none' },
  labels: {},
  restart: 'never',
  desired: 'running',
  generation: 1,
  rebootGeneration: 0,
  stopGraceSeconds: 0,
  metadataServer,
  createdAtMs: 1,
});

const all: MetadataServerRecord = { ways: ['vsock', 'serial', 'socket'] };

/** A host that can make no process; its VMs' metadata servers are served by this one. */
const hostOf = async (t: TestContext, launcher?: Launcher) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'ph-imds-'));
  const stores = await openStores(temporaryStore(t));
  const opened: HostedVm[] = [];
  const audited: AuditRecord[] = [];
  const audit = { isWritable: true };
  const troubles: string[] = [];
  const noProcess = 'no process can be started here';
  t.after(async () => {
    for (const vm of opened) {
      // Its device process would live on.
      if (launcher !== undefined) {
        vm.take({ ...vm.record, desired: 'deleted', generation: 2 });
        await until('it is deleted', () => vm.status.status === 'deleted');
      }
      await vm.release();
    }
    await stores[Symbol.asyncDispose]();
    rmSync(directory, { recursive: true });
  });
  const open = async (name: string, wish = all): Promise<HostedVm> => {
    const kept = await TreeStore.open(stores.region, recordOf(name, wish).id);
    const { persist, restored } = kept;
    const tree = new VmTree({
      vm: name,
      epoch: 1,
      audit: () => true,
      kept: { persist, ...(restored && { restored }) },
    });
    const text = `porthole: 1\nmetadata: { instance: { id: ${name} }, secrets: { s: x } }`;
    if (restored === undefined) await tree.load(checkedSpec(parseSpec(text, 'spec')).spec);
    const parts = {
      store: stores.region,
      stateDirectory: path.join(directory, 'state'),
      runDirectory: path.join(directory, 'run'),
      launcher: launcher ?? {
        kind: 'session',
        enforced: [],
        launch: () => Promise.reject(new Error(noProcess)),
        adopt: () => undefined,
      },
      deviceBuild: buildOf('device'),
      audit: {
        writable: true,
        ringLog: () => ({ writable: true, write: (lines: Uint8Array) => lines.length }),
        append: (records: readonly AuditRecord[]) => {
          if (audit.isWritable) audited.push(...records);
          return audit.isWritable;
        },
      },
      keeper: { open: async () => {}, close: async () => {} },
      onOutdated: () => {},
      onTrouble: (_vm: string, what: string) => {
        if (!what.includes(noProcess)) troubles.push(what);
      },
    } as unknown as HostParts;
    const vm = await HostedVm.open(parts, recordOf(name, wish), tree);
    opened.push(vm);
    return vm;
  };
  return { directory, stores, audited, audit, troubles, open };
};

interface Answered {
  readonly status: number;
  readonly text: string;
}

const ask = (socketPath: string, operation: string, body?: object, token?: string): Promise<Answered> =>
  new Promise((resolve, reject) => {
    const headers = {
      ...(body !== undefined && { 'content-type': 'application/json' }),
      ...(token !== undefined && { authorization: `Bearer ${token}` }),
    };
    const method = body === undefined ? 'GET' : 'POST';
    request({ socketPath, path: operation, method, headers, agent: false }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (part: string) => (text += part));
      response.once('end', () => resolve({ status: response.statusCode!, text }));
    })
      .once('error', reject)
      .end(body === undefined ? undefined : JSON.stringify(body));
  });

const claim = (socket: string, nonce: string): Promise<Answered> =>
  ask(socket, '/porthole/v1/token', { nonce: nonce.repeat(22) });

const tokenIn = ({ text }: Answered): string => (JSON.parse(text) as { token: string }).token;

const stat = (socket: string, token: string): Promise<Answered> =>
  ask(socket, '/porthole/v1/stat', { caller: { uid: 0, gid: 0, pid: 1 }, node: '/instance/id' }, token);

test('the metadata server of a VM is reached by its sockets alone, and knows that VM alone', async (t) => {
  const host = await hostOf(t);
  const vms = [await host.open('a'), await host.open('b')];
  for (const { name, devicePaths } of vms) {
    const { relay, vsock } = devicePaths.metadata;
    assert.equal((await ask(relay, '/nocloud/meta-data')).text, `instance-id: "${name}"\n`);
    assert.equal(statSync(relay).mode & 0o777, 0o600);
    assert.equal(readlinkSync(`${devicePaths.vsock}_80`), vsock, 'where a device process finds it');
    assert.equal((await ask(vsock, '/nocloud/meta-data')).status, 200);
  }
  await vms[0]!.boot(undefined);
  await vms[1]!.boot(undefined);
  const token = tokenIn(await claim(vms[0]!.devicePaths.metadata.privileged, 'a'));
  assert.equal((await stat(vms[0]!.devicePaths.metadata.relay, token)).status, 200);
  assert.equal((await stat(vms[1]!.devicePaths.metadata.relay, token)).status, 401, "another VM's is none");
  assert.deepEqual(host.troubles, []);
});

test('a token is claimed on privileged channels alone, and not before a boot was told of', async (t) => {
  const host = await hostOf(t);
  const vm = await host.open('a');
  const { relay, privileged, vsock, serial } = vm.devicePaths.metadata;
  assert.equal((await claim(privileged, 'a')).status, 503);
  await vm.boot(undefined);
  assert.deepEqual(vm.status.token, { state: 'unclaimed' });
  assert.equal((await claim(relay, 'a')).status, 403);
  assert.equal((await claim(vsock, 'a')).status, 403, 'a peer that does not say its port may be anybody');
  const port = createConnection(serial);
  t.after(() => port.destroy());
  const synced = Promise.withResolvers<void>();
  const mux = new SerialMux(port, { onSynced: synced.resolve });
  mux.sync(randomBytes(16));
  await synced.promise;
  const stream = mux.open();
  const body = JSON.stringify({ nonce: 's'.repeat(22) });
  stream.write(
    `POST /porthole/v1/token HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
  );
  const [answer] = (await stream.take(1).toArray()) as [Buffer];
  assert.match(answer.toString(), /^HTTP\/1\.1 200/);
  assert.equal(vm.status.token?.state, 'claimed');
});

test('a token and its state outlive the daemon, and not the boot', async (t) => {
  const host = await hostOf(t);
  const first = await host.open('a');
  const { privileged } = first.devicePaths.metadata;
  await first.boot(undefined);
  const answered = await claim(privileged, 'a');
  const token = tokenIn(answered);
  const value = (await host.stores.region.get('token/a'))!.value;
  assert.ok(!Buffer.from(value).includes(token), 'nobody who has the store has the token');
  await first.release();
  assert.equal(existsSync(privileged), false);
  const second = await host.open('a');
  assert.equal((await claim(privileged, 'a')).text, answered.text, 'its answer may have been lost with the daemon');
  assert.equal((await stat(privileged, token)).status, 200);
  assert.equal(second.status.token?.state, 'used');
  await second.release();
  const third = await host.open('a');
  assert.equal((await stat(privileged, token)).status, 200);
  await third.boot(undefined);
  assert.equal((await stat(privileged, token)).status, 401);
  assert.notEqual(tokenIn(await claim(privileged, 'a')), token);
});

test('a VM is compromised by a refusal before the first use, also for the next daemon, until it is booted anew', async (t) => {
  const host = await hostOf(t);
  const vm = await host.open('a');
  const { privileged } = vm.devicePaths.metadata;
  await vm.boot(undefined);
  const token = tokenIn(await claim(privileged, 'a'));
  assert.equal((await claim(privileged, 'b')).status, 409);
  assert.equal(vm.status.status, 'compromised');
  assert.match(vm.status.reason, /asked for this boot's token before/);
  assert.equal(vm.status.token?.state, 'compromised');
  assert.equal((await stat(privileged, token)).status, 401, 'whoever was first has nothing of it');
  assert.deepEqual(
    host.audited.map(({ operation, verdict, rule }) => [operation, verdict, rule]),
    [['token-compromised', 'denied', 'unix']],
  );
  await vm.release();
  const next = await host.open('a');
  assert.equal(next.status.status, 'compromised');
  await next.boot(undefined);
  assert.equal((await claim(privileged, 'b')).status, 200);
});

test('an incident is in the audit once that can be written, with its boot and time, also by the next daemon', async (t) => {
  const host = await hostOf(t);
  host.audit.isWritable = false;
  const vm = await host.open('a');
  const { privileged } = vm.devicePaths.metadata;
  await vm.boot(undefined);
  for (const nonce of ['a', 'b']) await claim(privileged, nonce);
  const before = Date.now();
  await vm.release();
  const next = await host.open('a');
  await next.boot(undefined);
  assert.deepEqual(host.audited, []);
  host.audit.isWritable = true;
  next.auditHealth(true);
  const record = await until('the record', () => host.audited[0]);
  assert.equal(record.operation, 'token-compromised');
  assert.ok(record.timeMs <= before);
  const kept = async (): Promise<Buffer> => Buffer.from((await host.stores.region.get('token/a'))!.value);
  await until('that to be kept', async () => !(await kept()).includes('untold'));
  await next.release();
  await host.open('a');
  assert.equal(host.audited.length, 1);
});

test('an attached VM is compromised no more once its next boot is told of', async (t) => {
  const host = await hostOf(t, new SessionLauncher());
  const vm = await host.open('a');
  const { privileged } = vm.devicePaths.metadata;
  await vm.boot(undefined);
  await until('it is served', () => vm.status.status === 'running');
  await claim(privileged, 'a');
  await claim(privileged, 'b');
  assert.equal(vm.status.status, 'compromised');
  await vm.boot(undefined);
  assert.deepEqual([vm.status.status, vm.status.reason, vm.status.token?.state], ['running', '', 'unclaimed']);
});

test('a refusal after the first use is an event, and the VM goes on', async (t) => {
  const host = await hostOf(t);
  const vm = await host.open('a');
  const { privileged } = vm.devicePaths.metadata;
  await vm.boot(undefined);
  const token = tokenIn(await claim(privileged, 'a'));
  await stat(privileged, token);
  for (let i = 0; i < 20; i++) assert.equal((await claim(privileged, 'b')).status, 409);
  assert.notEqual(vm.status.status, 'compromised');
  assert.deepEqual(
    host.audited.map(({ operation }) => operation),
    Array.from({ length: 5 }, () => 'token-refused'),
  );
  assert.equal((await stat(privileged, token)).status, 200);
  const { values } = await vm.statistics();
  assert.equal(values['metadata_server_rejected_token_taken_total'], 20);
});

test('what an agent asked for is done once, and its stream goes on, over a daemon that ends', async (t) => {
  const host = await hostOf(t);
  const first = await host.open('a');
  const { privileged } = first.devicePaths.metadata;
  await first.boot(undefined);
  const token = tokenIn(await claim(privileged, 'a'));
  const tree = JSON.parse((await ask(privileged, '/porthole/v1/tree', undefined, token)).text) as { revision: number };
  const make = { caller: { uid: 0, gid: 0, pid: 1 }, directory: '/guest', name: 'd', mode: 0o755, sequence: 1 };
  const made = await ask(privileged, '/porthole/v1/mkdir', make, token);
  assert.equal(made.status, 200);
  const { revision } = JSON.parse(made.text) as { revision: number };
  assert.ok(revision > tree.revision);
  await first.release();
  const second = await host.open('a');
  assert.deepEqual(await ask(privileged, '/porthole/v1/mkdir', make, token), made, 'sent again, it is answered');
  const watch = (from: number): Promise<number> =>
    new Promise((resolve, reject) => {
      const headers = { authorization: `Bearer ${token}` };
      request(
        { socketPath: privileged, path: `/porthole/v1/watch?from=${from}`, headers, agent: false },
        (response) => {
          resolve(response.statusCode!);
          response.destroy();
        },
      )
        .once('error', reject)
        .end();
    });
  assert.equal(await watch(revision), 200, 'nothing is missed');
  assert.equal(await watch(tree.revision), 410, 'nor hidden: what came between was told to nobody who is here');
  await second.boot(undefined);
  const again = tokenIn(await claim(privileged, 'a'));
  assert.equal((await ask(privileged, '/porthole/v1/mkdir', make, again)).status, 409, 'another boot counts anew');
});

test('the clouds that a VM can be given are those that a metadata server knows', () => {
  assert.deepEqual(metadataClouds, facadeNames);
});
