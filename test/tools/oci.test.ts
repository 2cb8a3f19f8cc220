/** A region's images as tools that nobody here wrote see them: Debian's skopeo and docker-registry. */
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { promisify } from 'node:util';
import { ImageLibrary } from '../../src/images/index.ts';
import type { ImageFile } from '../../src/records/index.ts';
import { until } from '../until.ts';

const freePort = async (): Promise<number> => {
  const server = createServer();
  await new Promise<void>((resolve) => void server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => void server.close(resolve));
  return port;
};

/** A registry that keeps what it is given in a directory. @returns its address */
const registry = async (t: TestContext, directory: string): Promise<string> => {
  const address = `127.0.0.1:${await freePort()}`;
  const config = join(directory, 'registry.yml');
  const storage = JSON.stringify({ filesystem: { rootdirectory: join(directory, 'registry') } });
  writeFileSync(config, `version: 0.1\nlog: { level: error }\nstorage: ${storage}\nhttp: { addr: "${address}" }\n`);
  const child = spawn('docker-registry', ['serve', config], { stdio: 'ignore' });
  t.after(() => child.kill());
  const isUp = (): Promise<boolean> =>
    fetch(`http://${address}/v2/`).then(
      ({ ok }) => ok,
      () => false,
    );
  await until('the registry', isUp);
  return address;
};

test('skopeo copies an image of a region to a registry and back, byte for byte', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'ph-oci-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const layout = join(directory, 'oci');
  await using library = new ImageLibrary({ directory: layout, recipes: {} });
  const file = (name: string): ImageFile => {
    const path = join(directory, name);
    writeFileSync(path, `bytes of ${name}`);
    return { from: 'host', path };
  };
  const { digest } = await library.addImage(
    {
      name: 'tiny',
      version: '1',
      source: { kind: 'kernel', kernel: file('kernel'), initrd: file('initrd'), commandLine: 'quiet' },
    },
    { progress: () => {} },
  );
  const skopeo = async (...args: readonly string[]): Promise<string> =>
    (await promisify(execFile)('skopeo', ['--insecure-policy', ...args])).stdout;
  const manifestIn = (where: string, hex = digest.replace(':', '/')): Buffer => readFileSync(join(where, 'blobs', hex));
  assert.equal(await skopeo('inspect', '--raw', `oci:${layout}:tiny:1`), manifestIn(layout).toString());
  const address = await registry(t, directory);
  const remote = `docker://${address}/porthole/tiny`;
  const back = join(directory, 'back');
  await skopeo('copy', '--preserve-digests', '--dest-tls-verify=false', `oci:${layout}:tiny:1`, `${remote}:1`);
  await skopeo('copy', '--preserve-digests', '--src-tls-verify=false', `${remote}@${digest}`, `oci:${back}:tiny`);
  assert.deepEqual(manifestIn(back), manifestIn(layout));
  const { config, layers } = JSON.parse(manifestIn(back).toString()) as Record<'layers', { digest: string }[]> & {
    config: { digest: string };
  };
  for (const part of [config, ...layers]) {
    const hex = part.digest.replace(':', '/');
    assert.deepEqual(manifestIn(back, hex), manifestIn(layout, hex));
  }
  assert.deepEqual(
    layers.map((layer) => manifestIn(back, layer.digest.replace(':', '/')).toString()),
    ['bytes of kernel', 'bytes of initrd'],
  );
});
