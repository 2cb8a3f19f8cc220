import { test } from 'node:test';
import { inspect, openPage, stage, tinyImage } from './stage.ts';

const spec = `porthole: 1
metadata: { secrets: { db: hunter2 } }
policy: [{ path: /secrets/db, owner: 1000, mode: "0400" }]
`;

export const listTests = (): void => {
  test('the audit is asked, followed and filtered', async (t) => {
    const { client } = (await stage()).machine;
    await client.call('createVm', { body: { name: 'watched', kind: 'attached', spec } });
    t.after(() => client.call('deleteVm', { params: { name: 'watched' } }));
    const read = () => client.raw('readMetadata', { params: { name: 'watched', path: 'secrets/db' } });
    await read();
    const page = await openPage(t);
    await page.getByRole('link', { name: 'Audit' }).click();
    await page.getByLabel('VM').fill('watched');
    await page.getByLabel('VM').press('Enter');
    const rows = page.getByRole('row').filter({ hasText: '/secrets/db' });
    await rows.first().getByText('allowed').waitFor();
    await inspect(page, 'audit');
    const before = await rows.count();
    await Promise.all([page.waitForResponse(/audit\/stream/), page.getByLabel('Follow').check()]);
    await read();
    await rows.nth(before).waitFor();
    const [file] = await Promise.all([
      page.waitForEvent('download'),
      page.getByRole('button', { name: 'Export JSON lines' }).click(),
    ]);
    await file.path();
    await page.getByLabel('Verdict').selectOption('denied');
    await page.getByText('No record matches').waitFor();
  });

  test('images and operations are listed, and an image that is used is not removed', async (t) => {
    const { client } = (await stage()).machine;
    await tinyImage();
    const user = { name: 'user', type: 'nano', image: { name: 'tiny' }, start: false } as const;
    await client.call('createVm', { body: user });
    t.after(() => client.call('deleteVm', { params: { name: 'user' } }));
    const page = await openPage(t, { expected: /409/ });
    await page.getByRole('link', { name: 'Images' }).click();
    await page.getByRole('checkbox', { name: 'Select tiny@1' }).check();
    await inspect(page, 'images');
    await page.getByRole('button', { name: 'Remove', exact: true }).click();
    await page.getByRole('button', { name: 'Remove tiny@1' }).click();
    await page.getByRole('article', { name: 'tiny@1 was not removed' }).getByText(/use/).waitFor();
    await page.getByRole('link', { name: 'Operations' }).click();
    await page
      .getByRole('row')
      .filter({ hasText: 'vm.create' })
      .filter({ hasText: 'user' })
      .getByText('succeeded')
      .waitFor();
    await inspect(page, 'operations');
  });
};
