import assert from 'node:assert/strict';
import { appendFileSync, mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { LogLimits } from './log-limits.ts';

test('LogLimits cuts logs that grow, and says once what it cannot cut', (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const directory = mkdtempSync(join(tmpdir(), 'porthole-logs-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const [log, odd] = [join(directory, 'device.log'), join(directory, 'odd')];
  mkdirSync(odd);
  const troubles: string[] = [];
  {
    using limits = new LogLimits({
      files: () => [odd, log],
      limitBytes: 10,
      everyMs: 100,
      onTrouble: (what) => troubles.push(what),
    });
    assert.ok(limits);
    for (let i = 0; i < 3; i++) {
      appendFileSync(log, 'x'.repeat(1000));
      t.mock.timers.tick(100);
      assert.ok(statSync(log).size <= 100, `${statSync(log).size}`);
    }
  }
  assert.equal(troubles.length, 1);
  assert.match(troubles[0]!, /^the log ".*odd" cannot be cut: /);
  appendFileSync(log, 'x'.repeat(1000));
  t.mock.timers.tick(1000);
  assert.ok(statSync(log).size > 1000);
});
