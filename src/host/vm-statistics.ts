/** What this machine sees of a VM, as numbers by name: for the API, for `/metrics`, and for the guest under `/instance/status`. */
import { type Qmp, vmStatistics } from '../qemu/index.ts';
import type { TreeEdit } from '../records/index.ts';
import type { Replica } from '../tree/index.ts';
import type { Counters } from './device-session.ts';

/** Names are `snake_case` with their unit; `_total` counts from a start on. */
export type Values = Readonly<Record<string, number>>;

interface Sources {
  /** While QEMU runs. */
  readonly qemu?: { readonly pid: number; readonly qmp: Qmp | undefined; readonly tap: string | undefined } | undefined;
  /** Of the device process. */
  readonly counters: Counters | undefined;
  /** Of the metadata server. */
  readonly metadata?: Counters | undefined;
  readonly denialsTotal: number;
  readonly bootNumber: number;
}

const snake = (name: string): string =>
  name
    .replaceAll('.', '_')
    .replaceAll(/([a-z0-9])([A-Z])/g, '$1_$2')
    .toLowerCase();

/** Of the device process, what is held now rather than counted. */
const gauges = new Set(['fuse.inodes', 'fuse.handles']);

/** And of the metadata server. */
const metadataGauges = new Set(['connections', 'inFlight', 'heldBytes']);

export const valuesOf = async ({ qemu, counters, metadata, denialsTotal, bootNumber }: Sources): Promise<Values> => {
  const values: Record<string, number> = { boots_total: bootNumber, denials_total: denialsTotal };
  const seen = qemu && (await vmStatistics(qemu.pid, { qmp: qemu.qmp, tap: qemu.tap }));
  if (seen !== undefined) {
    values['cpu_seconds_total'] = seen.cpu.seconds;
    values['guest_cpu_seconds_total'] = seen.cpu.guestSeconds;
    values['memory_resident_bytes'] = seen.memory.residentBytes;
    values['memory_peak_bytes'] = seen.memory.peakBytes;
    if (seen.memory.groupBytes !== undefined) values['memory_group_bytes'] = seen.memory.groupBytes;
    for (const [disk, counts] of Object.entries(seen.disks))
      for (const [what, value] of Object.entries(counts)) values[`${disk}_${snake(what)}_total`] = value;
    for (const [what, value] of Object.entries(seen.network ?? {})) values[`network_${snake(what)}_total`] = value;
  }
  let requests = 0;
  for (const [name, value] of Object.entries(counters ?? {})) {
    values[gauges.has(name) ? snake(name) : `${snake(name)}_total`] = value;
    if (/^fuse\.[A-Z0-9]+$/.test(name)) requests += value;
  }
  if (counters !== undefined) values['requests_total'] = requests;
  for (const [name, value] of Object.entries(metadata ?? {})) {
    const key = `metadata_server_${snake(name.replaceAll('-', '_'))}`;
    values[metadataGauges.has(name) ? key : `${key}_total`] = value;
  }
  return values;
};

/** What guests are told: little, and nothing that counts each of their requests. */
const shown = /^(boots|denials|requests|cpu_seconds|guest_cpu_seconds|disk\d+_.*|network_.*)_total$|^memory_/;

/** Where the host writes by itself. */
export const statusPath = '/instance/status';

/** The files there that say something else. An import of a whole tree takes them away. */
export const statusEdits = (values: Values, snapshot: Replica['snapshot']): TreeEdit[] =>
  Object.entries(values).flatMap(([name, value]): TreeEdit[] => {
    const path = `${statusPath}/${name}`;
    const bytes = Buffer.from(`${value}`);
    const there = shown.test(name) ? snapshot.resolve(path)?.bytes : bytes;
    return there !== undefined && bytes.equals(there) ? [] : [{ op: 'put', path, bytes }];
  });
