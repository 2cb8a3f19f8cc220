/** The tree of one spec file: loaded, kept, and loaded again when the file changes. */
import { resolve } from 'node:path';
import { type AuditSink, Authority, type Spec } from '../tree/index.ts';
import { keepingErrno } from './keeping-errno.ts';
import { digestOf } from './node-record.ts';
import { type LoadedSpec, loadSpec } from './spec-file.ts';
import { SpecError, type SpecProblem } from './spec-problem.ts';
import { SpecWatch } from './spec-watch.ts';
import type { State } from './state.ts';

export interface ServedTreeOptions {
  readonly vm: string;
  readonly file: string;
  /** What `loadSpecOrThrow` read from the file. */
  readonly loaded: LoadedSpec & { readonly spec: Spec };
  /** Where what guests write is kept; undefined: in memory only. Nothing is written to one that is open for reading. */
  readonly state: State | undefined;
  readonly audit: AuditSink;
  readonly wallMs: () => number;
}

export interface Reload {
  readonly revision: number;
  /** Paths that changed. */
  readonly changes: number;
  /** False: the file says what it said before. True without changes: rules alone. */
  readonly changed: boolean;
  readonly warnings: readonly SpecProblem[];
}

export interface ReloadWatcher {
  onReload(reload: Reload): void;
  /** The old tree is still served. */
  onRejected(error: SpecError | Error): void;
}

/** Loads the tree from the spec and the state, and keeps it in step with the file once `watch` is called. */
export class ServedTree implements Disposable {
  readonly authority: Authority;
  readonly file: string;
  #warnings: readonly SpecProblem[];
  #references: readonly string[];
  #watch: SpecWatch | undefined;

  /** StoreError when the state is damaged or can't be written. The caller closes the state. */
  constructor(options: ServedTreeOptions) {
    const { vm, audit, wallMs, state } = options;
    this.file = resolve(options.file);
    const { spec, references, problems } = options.loaded;
    this.#warnings = problems;
    this.#references = references;
    const restored = state?.restore();
    const writable = state?.readOnly === false ? state : undefined;
    this.authority = new Authority({
      vm,
      wallMs,
      audit,
      digest: digestOf,
      errnoOf: keepingErrno,
      ...(writable && { persist: writable.persist }),
      ...(restored && { restored }),
    });
    this.authority.load(spec);
    writable?.rememberSpecFile(this.file);
  }

  get warnings(): readonly SpecProblem[] {
    return this.#warnings;
  }

  /** Loads the file again whenever it, or a file that its values come from, changes. */
  watch(watcher: ReloadWatcher): void {
    this.#watch ??= new SpecWatch(this.file, () => this.reload(watcher));
    this.#watch.follow(this.#references);
  }

  reload(watcher: ReloadWatcher): void {
    const { spec, problems, references } = loadSpec(this.file);
    // Those of a spec with an error too: a file that it misses may come.
    this.#references = spec === undefined ? [...new Set([...this.#references, ...references])] : references;
    this.#watch?.follow(this.#references);
    if (spec === undefined) return watcher.onRejected(new SpecError(problems));
    try {
      const before = this.authority.snapshot.revision;
      const { revision, changes } = this.authority.load(spec);
      const changed = revision !== before;
      const warnings = JSON.stringify(problems) === JSON.stringify(this.#warnings) ? [] : problems;
      this.#warnings = problems;
      watcher.onReload({ revision, changes: changes.length, changed, warnings });
    } catch (error) {
      watcher.onRejected(error instanceof Error ? error : new Error(String(error)));
    }
  }

  [Symbol.dispose](): void {
    this.#watch?.[Symbol.dispose]();
  }
}
