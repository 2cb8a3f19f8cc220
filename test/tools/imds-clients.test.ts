/** Clients that nobody here wrote, unmodified, and what they make of a metadata server. */
import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';
import { MetadataService } from '@aws-sdk/ec2-metadata-service';
import { fromInstanceMetadata } from '@smithy/credential-provider-imds';
import * as gcpMetadata from 'gcp-metadata';
import { until } from '../until.ts';
import { clientsRoot } from './imds/packages.ts';

const run = promisify(execFile);
const root = join(import.meta.dirname, '..', '..');
const scripts = join(import.meta.dirname, 'imds');
const key = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@home';

const specOf = (users: string): string => `porthole: 1
metadata:
  instance: { id: i-0042, hostname: web-1, zone: eu-1a, type: small, tags: { role: db } }
  network: { ipv4: 10.0.0.5, mac: "02:aa:00:00:00:01" }
  user: { name: ${users}, ssh-keys: "${key}\\n" }
  cluster: { project-id: p1, numeric-project-id: "42" }
  cloud-init: { meta-data: "instance-id: i-0042\\nlocal-hostname: web-1\\n", user-data: "#cloud-config\\n" }
  secrets:
    db-password: hunter2
    credentials:
      ec2:
        web: '{"AccessKeyId":"AK","SecretAccessKey":"SK","Token":"TO","Expiration":"2099-01-01T00:00:00Z"}'
policy:
  - { path: /secrets/credentials/ec2/web, facade: true }
  - { path: /cloud-init/user-data, facade: true }
`;

/** A `porthole serve` with a metadata server, alone or in a network of its own. */
class Served implements AsyncDisposable {
  readonly dir = mkdtempSync(join(tmpdir(), 'porthole-imds-clients-'));
  readonly file = join(this.dir, 'vm.yaml');
  readonly socket = join(this.dir, 's');
  readonly mount = join(this.dir, 'm');
  readonly process: ChildProcess;
  said = '';

  constructor(isLinkLocal: boolean) {
    writeFileSync(this.file, specOf('admin'));
    mkdirSync(this.mount);
    const [command, ...args] = isLinkLocal
      ? ['unshare', '--net', 'sh', join(scripts, 'link-local.sh'), this.file]
      : [
          join(root, 'porthole'),
          'serve',
          this.file,
          '--mount',
          this.mount,
          '--http',
          '127.0.0.1:0',
          '--http',
          `unix:${this.socket}`,
          '--json',
        ];
    this.process = spawn(command!, args, {
      cwd: root,
      env: { PATH: process.env['PATH'] },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    this.process.stdout!.on('data', (part: Buffer) => {
      this.said += part.toString();
    });
  }

  /** Where it listens first. */
  address(): Promise<string> {
    return until('it serves', () => /"event":"http","address":"(http[^"]+)"/.exec(this.said)?.[1], 60_000);
  }

  /** Runs a command in its network. */
  inside(...command: readonly string[]) {
    return run('nsenter', ['--net', '--target', String(this.process.pid), ...command], { timeout: 120_000 });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.process, 'exit');
    this.process.kill('SIGTERM');
    await ended;
    rmSync(this.dir, { recursive: true });
  }
}

describe('clients with an address of their own for the server', () => {
  let served: Served;
  let address: string;
  before(async () => {
    served = new Served(false);
    address = await served.address();
    process.env['AWS_EC2_METADATA_SERVICE_ENDPOINT'] = address;
    process.env['GCE_METADATA_HOST'] = address.replace('http://', '');
    process.env['METADATA_SERVER_DETECTION'] = 'assume-present';
  });
  after(() => served[Symbol.asyncDispose]());

  test("the AWS SDK's credential provider gets the role's credentials", async () => {
    const credentials = await fromInstanceMetadata({ timeout: 10_000, maxRetries: 0 })();
    assert.deepEqual(
      [credentials.accessKeyId, credentials.secretAccessKey, credentials.sessionToken],
      ['AK', 'SK', 'TO'],
    );
  });

  test("the AWS SDK's metadata service reads paths, its double slash included", async () => {
    const service = new MetadataService({ endpoint: address, httpOptions: { timeout: 10_000 } });
    assert.equal(await service.request('/latest/meta-data/instance-id', {}), 'i-0042');
    assert.equal(await service.request('/latest/user-data', {}), '#cloud-config\n');
    await assert.rejects(service.request('/latest/meta-data/nothing', {}));
  });

  test('gcp-metadata finds it, and reads leaves and trees', async () => {
    assert.equal(await gcpMetadata.isAvailable(), true);
    assert.equal(await gcpMetadata.instance('hostname'), 'web-1');
    assert.equal(await gcpMetadata.project('project-id'), 'p1');
    const all = (await gcpMetadata.instance({ params: { recursive: 'true' } })) as { readonly zone: string };
    assert.equal(all.zone, 'projects/42/zones/eu-1a');
    await assert.rejects(gcpMetadata.instance('nothing'));
  });

  test("cloud-init's NoCloud data source takes the mounted tree for its seed directory", async () => {
    await until('the mount', () => served.said.includes('"event":"ready"'), 60_000);
    const script = [join(scripts, 'seed.py'), served.dir, `file://${served.mount}/cloud-init/`];
    const { stdout } = await run('/usr/bin/python3', script, {
      env: { ...process.env, PYTHONPATH: join(clientsRoot(), 'usr/lib/python3/dist-packages') },
    });
    assert.deepEqual(JSON.parse(stdout), [true, 'i-0042', '#cloud-config\n']);
  });

  test('curl over a socket, and two programs at once, each get what they asked for', async () => {
    const curl = (path: string) => run('curl', ['-sSf', '--unix-socket', served.socket, `http://localhost${path}`]);
    const paths = ['/nocloud/meta-data', '/openstack/latest/network_data.json'];
    const [meta, network] = await Promise.all(paths.map((path) => curl(path)));
    const again = await Promise.all(Array.from({ length: 20 }, (_, i) => curl(paths[i % 2]!)));
    for (const [i, { stdout }] of again.entries()) assert.equal(stdout, (i % 2 === 0 ? meta! : network!).stdout);
    assert.match(meta!.stdout, /i-0042/);
    await assert.rejects(curl('/latest/meta-data/'), /401/);
  });
});

describe('clients that know no other address than 169.254.169.254', () => {
  const clients = clientsRoot();
  let served: Served;
  before(async () => {
    served = new Served(true);
    await served.address();
  });
  after(() => served[Symbol.asyncDispose]());

  test('ec2-metadata prints what it finds', async () => {
    const { stdout } = await served.inside(join(clients, 'usr/bin/ec2-metadata'), '-i', '-h', '-z', '-t', '-u');
    assert.match(stdout, /^instance-id: i-0042$/m);
    assert.match(stdout, /^local-hostname: web-1$/m);
    assert.match(stdout, /^placement: eu-1a$/m);
    assert.match(stdout, new RegExp(`^${key}$`, 'm'));
  });

  test("cloud-init's data sources for GCE, OpenStack, NoCloud and EC2 find id, name, keys and user-data", async () => {
    const { stdout } = await served.inside(
      'env',
      `PYTHONPATH=${join(clients, 'usr/lib/python3/dist-packages')}`,
      '/usr/bin/python3',
      join(scripts, 'cloud-init.py'),
      served.dir,
    );
    assert.deepEqual(JSON.parse(stdout.split('\n').findLast((line) => line.startsWith('{'))!), {
      gce: [true, 'web-1', '#cloud-config\n'],
      openstack: ['i-0042', '#cloud-config\n'],
      nocloud: ['i-0042', 'web-1', '#cloud-config\n', ''],
      ec2: ['i-0042', '#cloud-config\n', { 'me@home': key }],
    });
  });

  test("Google's guest agent makes the user of the key, and another when the key's user changes", async () => {
    const dir = join(served.dir, 'agent');
    mkdirSync(dir);
    const script = [join(scripts, 'guest-agent.sh'), dir, join(clients, 'usr/bin/google_guest_agent')];
    const spaces = ['--mount', '--pid', '--fork', '--kill-child'];
    const agent = spawn(
      'nsenter',
      ['--net', '--target', String(served.process.pid), 'unshare', ...spaces, 'sh', ...script],
      { stdio: 'ignore' },
    );
    const ended = once(agent, 'exit');
    const hasKey = (user: string) => (): boolean => {
      assert.equal(agent.exitCode, null, 'the guest agent ended');
      const pid = childOf(agent.pid!);
      if (pid === undefined) return false;
      try {
        return readFileSync(`/proc/${pid}/root/home/${user}/.ssh/authorized_keys`, 'utf8').includes(key);
      } catch {
        return false;
      }
    };
    try {
      await until('the user of the key', hasKey('admin'), 90_000);
      writeFileSync(served.file, specOf('deputy'));
      await until('the user of the changed key', hasKey('deputy'), 90_000);
    } finally {
      agent.kill('SIGTERM');
      const pid = childOf(agent.pid!);
      if (pid !== undefined) process.kill(pid, 'SIGKILL');
      await ended;
    }
  });
});

/** The only child of a process, as the kernel tells. */
const childOf = (pid: number): number | undefined => {
  try {
    const text = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
    return text === '' ? undefined : Number(text.split(' ')[0]);
  } catch {
    return undefined;
  }
};
