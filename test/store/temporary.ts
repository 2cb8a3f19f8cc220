import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';

/** Where a store can be made; gone after the test. */
export const temporaryStore = (t: TestContext): { readonly directory: string; readonly keyFile: string } => {
  const base = mkdtempSync(join(tmpdir(), 'porthole-stores-'));
  t.after(() => rmSync(base, { recursive: true, force: true }));
  return { directory: join(base, 'stores'), keyFile: join(base, 'key') };
};
