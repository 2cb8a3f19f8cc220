/** A tree with its authority and any number of file systems on it, in one process, for tests. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import {
  type AuditRecord,
  Authority,
  type AuthorityOptions,
  type Clock,
  defaultQuota,
  type Mutation,
  type Outcome,
  type PolicySpec,
  Replica,
  type Rule,
  type Spec,
  type SpecEntry,
  TreeFileSystem,
  type Way,
  ways,
} from '../../src/tree/index.ts';

/** A nested object as a spec's entries: strings and bytes are files, `{ symlink }` is a link, other objects are directories. */
export type Content = { readonly [name: string]: Content | string | Uint8Array | Symlink };

export class Symlink {
  readonly target: string;
  constructor(target: string) {
    this.target = target;
  }
}

function entriesOf(content: Content, parent = ''): SpecEntry[] {
  return Object.entries(content).flatMap(([name, value]): SpecEntry[] => {
    const path = `${parent}/${name}`;
    if (typeof value === 'string') return [{ path, kind: 'file', bytes: new TextEncoder().encode(value) }];
    if (value instanceof Uint8Array) return [{ path, kind: 'file', bytes: value }];
    if (value instanceof Symlink) return [{ path, kind: 'symlink', target: value.target }];
    return [{ path, kind: 'directory' }, ...entriesOf(value as Content, path)];
  });
}

export interface WorldSpec {
  readonly content: Content;
  readonly rules?: readonly Rule[];
  readonly policy?: Partial<PolicySpec>;
}

export const specOf = ({ content, rules, policy }: WorldSpec): Spec => ({
  entries: entriesOf(content),
  policy: { rules: rules ?? [], users: {}, groups: {}, quota: defaultQuota, ...policy },
});

export const digest = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('base64');

/** What an authority answers whose keeper answers at once. */
export function commitNow(authority: Authority, mutation: Mutation, way: Way, holder: string): Outcome {
  const outcomes: Outcome[] = [];
  authority.commit(mutation, way, holder, undefined, (outcome) => outcomes.push(outcome));
  assert.equal(outcomes.length, 1, 'settled once, in the same turn');
  return outcomes[0]!;
}

/** Time stands still until a test moves it. */
export class TestClock implements Clock {
  nowMs = Date.UTC(2026, 0, 1);
  readonly wallMs = (): number => this.nowMs;
  readonly monotonicMs = (): number => this.nowMs;
  advance(ms: number): void {
    this.nowMs += ms;
  }
}

export class World {
  readonly clock: TestClock;
  readonly authority: Authority;
  readonly audit: AuditRecord[] = [];
  auditWorks = true;
  /** Hears of every mutation on its way up. */
  onMutation: (mutation: Mutation) => void = () => {};
  #holders = 0;

  constructor(spec: WorldSpec, options: Partial<AuthorityOptions> & { readonly clock?: TestClock } = {}) {
    this.clock = options.clock ?? new TestClock();
    this.authority = new Authority({ vm: 'test', wallMs: this.clock.wallMs, digest, audit: this.sink, ...options });
    this.authority.load(specOf(spec));
  }

  readonly sink = (record: AuditRecord): boolean => {
    if (this.auditWorks) this.audit.push(record);
    return this.auditWorks;
  };

  load(spec: WorldSpec) {
    return this.authority.load(specOf(spec));
  }

  /** Asks the authority directly, as nobody's replica. */
  commit(mutation: Mutation, way: Way = ways.direct): Outcome {
    return commitNow(this.authority, mutation, way, 'nobody');
  }

  /** A file system with a replica of its own. */
  fileSystem(way: Way): TreeFileSystem {
    const replica = new Replica();
    const holder = `replica ${this.#holders++}`;
    const upstream = this.authority.upstream(way, holder);
    const fileSystem = new TreeFileSystem({
      replica,
      way,
      upstream: {
        submit: (mutation, settle) => {
          this.onMutation(mutation);
          upstream.submit(mutation, settle);
        },
      },
      audit: this.sink,
      vm: 'test',
      clock: this.clock,
    });
    this.authority.subscribe(holder, (delta) => replica.apply(delta));
    return fileSystem;
  }
}
