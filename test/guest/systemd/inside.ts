/** Runs under a real systemd: what a daemon does there, with what it found as the last line of its output. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { findLauncher, type LaunchSpec, lastLine, vmStatistics } from '../../../src/qemu/index.ts';
import { bootLimitMs, OwnVm } from '../own-vm.ts';

const directory = '/run/out/logs';
mkdirSync(directory);
const spec = (name: string, command: readonly [string, ...string[]], more: Partial<LaunchSpec> = {}): LaunchSpec => ({
  name,
  description: 'a test',
  command,
  logFile: `${directory}/${name}`,
  ...more,
});

const launcher = await findLauncher();
const limits = { memoryBytes: 100_000_000, processes: 9, openFiles: 77, addressSpaceBytes: 2 ** 31 };
const command = ['sh', '-c', 'echo "$1" >&2; exec sleep 1000', 'sh', 'a $PATH %n "q"'] as const;
const first = await launcher.launch(spec('ph-first', command, { uid: 700_300, groups: [700_301], limits }));
const { pid } = first.identity;
const show = ['show', 'ph-first.service', '-p', 'MemoryMax,TasksMax,LimitNOFILE,Slice'];
const found = {
  kind: launcher.kind,
  unit: first.identity.unit,
  status: readFileSync(`/proc/${pid}/status`, 'utf8'),
  group: /^0::(.*)$/m.exec(readFileSync(`/proc/${pid}/cgroup`, 'utf8'))?.[1],
  properties: execFileSync('systemctl', show, { encoding: 'utf8' }).trim().split('\n').toSorted(),
  words: lastLine(`${directory}/ph-first`),
};
first.release();
const adopted = launcher.adopt(first.identity, `${directory}/ph-first`)!;
adopted.signal('SIGKILL');
const killed = await adopted.ended;
const exited = await (await launcher.launch(spec('ph-exit', ['sh', '-c', 'sleep 0.2; exit 3']))).ended;
const refused = await launcher.launch(spec('ph-none', ['/no/such/program'])).then(
  async (late) => ({ late: await late.ended, words: lastLine(`${directory}/ph-none`) }),
  (error: Error) => ({ words: error.message }),
);

await using own = await OwnVm.make({ options: { launcher } });
own.vm.start();
await own.ready();
const units = execFileSync('systemctl', ['list-units', '--plain', '--no-legend', 'porthole-*'], { encoding: 'utf8' });
const qemuPid = own.vm.qemuPid!;
own.restartDaemon();
await own.vm.until(() => own.vm.qmp !== undefined, AbortSignal.timeout(bootLimitMs));
const isSame = own.vm.qemuPid === qemuPid;
const statistics = await vmStatistics(qemuPid, { qmp: own.vm.qmp });
own.vm.stop();
await own.vm.until(({ status }) => status === 'stopped', AbortSignal.timeout(bootLimitMs));
const { story } = own;
console.log(JSON.stringify({ ...found, killed, exited, refused, units, isSame, statistics, story }));
