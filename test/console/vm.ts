import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Page } from 'playwright-core';
import { inspect, openPage, stage, tinyImage } from './stage.ts';

const hostile = `<img src=x onerror="document.title='owned'">\u202e`;
const spec = `porthole: 1
users: { app: 1000 }
metadata:
  instance: { id: i-1, hostname: web-1 }
  secrets: { db: hunter2 }
policy:
  - { path: /secrets/db, owner: app, mode: "0400" }
`;

const rowOf = (page: Page, text: string) => page.getByRole('row').filter({ hasText: text });

export const vmTests = (): void => {
  test('one VM is shown with its metadata: secrets when asked for, which is on record, edits, and conflicts', async (t) => {
    const { client } = (await stage()).machine;
    await client.call('createVm', { body: { name: 'cell', kind: 'attached', spec, labels: { note: hostile } } });
    t.after(() => client.call('deleteVm', { params: { name: 'cell' } }));
    const page = await openPage(t, { expected: /412/ });
    await page.getByRole('link', { name: 'cell' }).click();
    await page.getByRole('heading', { name: 'cell', level: 1 }).waitFor();
    await page.getByText(hostile).waitFor();
    await inspect(page, 'vm');
    await page.getByRole('link', { name: 'Metadata' }).click();
    await rowOf(page, '/secrets/db').getByText('-r--------').waitFor();
    await rowOf(page, '/secrets/db').getByText('app').first().waitFor();

    await rowOf(page, '/secrets/db').click();
    const node = page.getByRole('region', { name: 'Node /secrets/db' });
    assert.equal(await page.getByText('hunter2').count(), 0);
    await inspect(page, 'metadata-masked');
    const shownBy = async () =>
      (await client.call('queryAudit', { query: { vm: 'cell', path: '/secrets/db' } })).events.filter(({ by }) => by);
    assert.equal((await shownBy()).length, 0);
    await node.getByRole('button', { name: 'Show the value' }).click();
    const value = node.getByLabel('Value');
    await value.waitFor();
    assert.equal(await value.inputValue(), 'hunter2');
    assert.equal((await shownBy()).length, 1);

    // Somebody else writes while it is edited here.
    const other = await openPage(t, { at: '/vms/cell/metadata?path=/secrets/db' });
    await other.getByRole('button', { name: 'Show the value' }).click();
    await other.getByLabel('Value').fill('theirs');
    await value.fill('mine');
    await other.getByRole('button', { name: 'Save' }).click();
    await node.getByText('It was changed by somebody else meanwhile.').waitFor();
    await inspect(page, 'metadata-conflict');
    await node.getByRole('button', { name: 'Take theirs' }).click();
    await page.waitForFunction('document.querySelector("textarea")?.value === "theirs"');
    await value.fill('mine again');
    await node.getByRole('button', { name: 'Save' }).click();
    await other.getByText('It has changed since it was shown.').waitFor();
    await page.getByRole('button', { name: 'Close' }).click();

    await client.call('writeMetadata', {
      params: { name: 'cell', path: 'instance/hostname' },
      body: Buffer.from('new'),
    });
    await rowOf(page, '/instance/hostname').getByText('(changed just now)').waitFor();
    await page.getByRole('button', { name: 'New value' }).click();
    const dialog = page.getByRole('dialog', { name: 'New value' });
    await dialog.getByRole('textbox', { name: 'Path' }).fill('/instance/made');
    await dialog.getByRole('textbox', { name: 'Value' }).fill('here');
    await dialog.getByRole('button', { name: 'Make it' }).click();
    await page.getByRole('region', { name: 'Node /instance/made' }).getByLabel('Value').waitFor();
    const made = await client.raw('readMetadata', { params: { name: 'cell', path: 'instance/made' } });
    assert.equal(made.bytes.toString(), 'here');
  });

  test('a policy is edited with its mistakes told, and what it would change is seen before it is saved', async (t) => {
    const { client } = (await stage()).machine;
    await client.call('createVm', { body: { name: 'ruled', kind: 'attached', spec } });
    t.after(() => client.call('deleteVm', { params: { name: 'ruled' } }));
    const page = await openPage(t, { at: '/vms/ruled/policy', expected: /422/ });
    const rules = page.getByLabel('Policy as YAML');
    await rules.waitFor();
    const before = await rules.inputValue();
    const look = async (): Promise<void> => {
      await page.getByLabel('uid').fill('1000');
      await page.getByRole('button', { name: 'Look' }).click();
    };
    const seen = page.getByRole('list', { name: 'What this caller may do' });
    await look();
    await page.getByText('Under the rules as they are saved.').waitFor();
    await seen.getByRole('listitem').filter({ hasText: '/secrets/db' }).getByText('read').first().waitFor();

    await rules.fill(before.replace('mode:', 'mdoe:'));
    await page.getByRole('button', { name: 'Save' }).click();
    await page
      .getByText(/^Line \d+: /)
      .first()
      .waitFor();
    await inspect(page, 'policy-mistake');

    await rules.fill(before.replace(/owner: \S+?(?=[,\s])/, 'owner: 1001'));
    await page.getByRole('button', { name: 'What would it change?' }).click();
    await page.getByText(/loses .*read/).waitFor();
    await look();
    await page.getByText('Under the rules as they are edited, not saved.').waitFor();
    await inspect(page, 'policy-preview');
    await page.getByRole('button', { name: 'Save' }).click();
    await page.getByRole('button', { name: 'Save', disabled: true }).waitFor();
    const explained = await client.call('explainPolicy', {
      params: { name: 'ruled' },
      query: { path: '/secrets/db', uid: 1000 },
    });
    assert.equal(explained.read.allowed, false);
  });

  test('the console of a VM is live, and what is typed comes to its machine', async (t) => {
    const { machine } = await stage();
    const { client } = machine;
    await tinyImage();
    const vm = { name: 'shell', type: 'nano', image: { name: 'tiny' }, stopGraceSeconds: 1 } as const;
    await machine.done(await client.call('createVm', { body: vm }));
    t.after(async () => machine.done(await client.call('deleteVm', { params: { name: 'shell' } })));
    await machine.untilReady('shell');
    const page = await openPage(t, { at: '/vms/shell/console' });
    await page.getByText('Live: what you type').waitFor();
    const terminal = page.getByRole('region', { name: 'Console of shell' });
    await terminal.getByRole('textbox').focus();
    // Colors by number, and a title and a link that a guest would like to give.
    const shown = String.raw`\033[38;2;9;200;9mpain\033[0mted\033]0;owned\007\033]8;;http://evil.example\007x\033]8;;\007`;
    await page.keyboard.type(`printf '${shown} '; echo $((6 * 7))-done`);
    await page.keyboard.press('Enter');
    await terminal.getByText('paintedx 42-done').first().waitFor({ state: 'attached' });
    assert.equal(await page.title(), 'shell: Console – Porthole');
    assert.equal(await terminal.getByRole('link').count(), 0);
    await inspect(page, 'vm-console');
    await page.keyboard.press('Shift+Tab');
    assert.equal(await page.locator(':focus').getAttribute('class'), null);
  });
};
