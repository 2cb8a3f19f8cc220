import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Page } from 'playwright-core';
import { inspect, openPage, stage, tinyImage } from './stage.ts';

const rowOf = (page: Page, name: string) =>
  page.getByRole('row').filter({ has: page.getByRole('checkbox', { name: `Select ${name}`, exact: true }) });
const hostile = `<img src=x onerror="document.title='owned'">`;

export const vmsTests = (): void => {
  test('VMs are listed live, filtered, sorted, stopped, started and deleted', async (t) => {
    const { client } = (await stage()).machine;
    await tinyImage();
    const page = await openPage(t);
    await page.getByText('No VMs yet').waitFor();
    await inspect(page, 'vms-empty');
    const vm = { kind: 'managed', type: 'nano', image: { name: 'tiny' }, stopGraceSeconds: 1 } as const;
    await client.call('createVm', { body: { ...vm, name: 'web-1', labels: { app: 'web', note: hostile } } });
    await client.call('createVm', { body: { ...vm, name: 'db-1', start: false, labels: { app: 'db' } } });
    await client.call('createVm', { body: { name: 'other', kind: 'attached' } });
    await rowOf(page, 'web-1').getByText('running').waitFor();
    await rowOf(page, 'db-1').getByText('stopped').waitFor();
    await rowOf(page, 'web-1').getByText(hostile).waitFor();
    await inspect(page, 'vms');

    const names = async (): Promise<string[]> =>
      (await page.getByRole('checkbox', { name: /^Select (?!all)/ }).all()).reduce<Promise<string[]>>(
        async (list, box) => [...(await list), (await box.getAttribute('aria-label'))!.replace('Select ', '')],
        Promise.resolve([]),
      );
    assert.deepEqual(await names(), ['db-1', 'other', 'web-1']);
    await page.getByRole('button', { name: 'Name' }).click();
    assert.deepEqual(await names(), ['web-1', 'other', 'db-1']);
    await page.getByRole('searchbox').fill('app=db');
    await page.getByText('1 of 3 VMs').waitFor();
    assert.deepEqual(await names(), ['db-1']);
    await page.reload();
    await page.getByText('1 of 3 VMs').waitFor();
    await page.getByRole('searchbox').fill('nothing like this');
    await page.getByRole('button', { name: 'Clear the filter' }).click();
    await page.getByText('3 VMs').waitFor();

    await page.getByRole('checkbox', { name: 'Select web-1', exact: true }).check();
    await page.getByRole('button', { name: 'Stop', exact: true }).click();
    const dialog = page.getByRole('dialog', { name: 'Stop web-1?' });
    await dialog.getByRole('button', { name: 'Cancel' }).click();
    await page.getByRole('button', { name: 'Stop', exact: true }).click();
    await inspect(page, 'vms-stop');
    await dialog.getByRole('button', { name: 'Stop web-1' }).click();
    await rowOf(page, 'web-1').getByText('stopped').waitFor();
    const activity = page.getByRole('article', { name: 'Stopping web-1' });
    await activity.getByText('succeeded').waitFor();
    await activity.getByText('1 of 1').waitFor();
    await inspect(page, 'vms-activity');
    await activity.getByRole('button', { name: 'Dismiss' }).click();

    // By keyboard alone.
    await page.getByRole('grid', { name: 'VMs' }).focus();
    await page.keyboard.press('Escape');
    await page.keyboard.press('Home');
    await page.keyboard.press('Space');
    await page.getByText('1 selected').waitFor();
    await page.keyboard.press('Control+a');
    await page.getByText('3 selected').waitFor();
    await page.getByRole('button', { name: 'Delete', exact: true }).focus();
    await page.keyboard.press('Enter');
    await page.getByRole('dialog', { name: 'Delete 3 VMs?' }).waitFor();
    await page.keyboard.press('Escape');
    await page.getByRole('dialog').waitFor({ state: 'detached' });
    await page.keyboard.press('Enter');
    await page.getByRole('button', { name: 'Delete 3 VMs' }).focus();
    await page.keyboard.press('Enter');
    await page.getByText('No VMs yet').waitFor();
    assert.equal(await page.title(), 'VMs – Porthole');
  });
};
