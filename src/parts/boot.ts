/**
 * What the one-file executable runs first, and each of its threads: it loads one part, with the code that V8 compiled when
 * the executable was built, and nothing of the others. The build makes it a script of its own (`boot.js`), which leaves
 * `boot` behind as a global function.
 */
import { getRawAsset } from 'node:sea';
import { Script } from 'node:vm';

/** Also in start.ts; this script must not load that one. */
const prefix = 'part:';

const bytes = (asset: string): Buffer => Buffer.from(getRawAsset(asset) as ArrayBuffer);

type Part = (getBuiltin: typeof process.getBuiltinModule) => Promise<void>;

/** Loads a part without running it. `compiled` is false when V8 refused the code of the build, and compiles it again. */
export const load = (part: string): { readonly run: Part; readonly compiled: boolean } => {
  // The build makes sure that it is ASCII, so that a byte is a character, in V8's heap too.
  const script = new Script(bytes(`${part}.js`).toString('latin1'), {
    filename: `porthole:${part}`,
    cachedData: bytes(`${part}.cache`),
  });
  return { run: script.runInThisContext() as Part, compiled: script.cachedDataRejected === false };
};

/** Runs a part. What it throws ends the process or thread, as an uncaught error of any program does. */
export const boot = (part: string): void => {
  void load(part).run(process.getBuiltinModule);
};

/** Runs the part that the command line names, which sees the arguments after it; without one, the executable's own. */
export const bootProcess = (own: string): void => {
  const [, , first, second] = process.argv;
  if (first?.startsWith(prefix) !== true) {
    boot(own);
    return;
  }
  const part = first.slice(prefix.length);
  // Asked by the build: does V8 take the compiled code, under the flags of that part?
  if (part === 'compiled') {
    process.stdout.write(`${String(load(second ?? '').compiled)}\n`);
    return;
  }
  process.argv.splice(2, 1);
  boot(part);
};
