import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inspect, openPage, stage } from './stage.ts';

export const frameTests = (): void => {
  test('the frame has landmarks, a skip link, themes, and addresses that work', async (t) => {
    const page = await openPage(t, { expected: /404/ });
    await page.getByRole('heading', { name: 'VMs', level: 1 }).waitFor();
    assert.equal(new URL(page.url()).pathname, '/vms');
    for (const landmark of ['banner', 'main'] as const)
      assert.equal(await page.getByRole(landmark).count(), 1, landmark);
    await page.getByRole('navigation', { name: 'Main' }).getByRole('link', { name: 'VMs' }).waitFor();
    await page.keyboard.press('Tab');
    await page.getByRole('link', { name: 'Skip to content' }).and(page.locator(':focus')).waitFor();
    const groundOf = () => page.evaluate<string>('getComputedStyle(document.body).backgroundColor');
    const light = await groundOf();
    await page.getByLabel('Theme').selectOption('Dark');
    const dark = await groundOf();
    assert.notEqual(dark, light);
    await page.reload();
    await page.getByRole('heading', { name: 'VMs', level: 1 }).waitFor();
    assert.equal(await groundOf(), dark);
    await page.goto('/nothing-here');
    await page.getByRole('heading', { name: 'There is no such page' }).waitFor();
    await page.getByRole('link', { name: 'Porthole' }).click();
    await page.getByRole('grid', { name: 'VMs' }).waitFor();
    await page.goBack();
    await page.getByRole('heading', { name: 'There is no such page' }).waitFor();
  });

  test('a page that loses its server says so, and goes on by itself', async (t) => {
    const { machine, url } = await stage();
    const page = await openPage(t, { expected: /ERR_|Failed to load/ });
    await page.getByText('No VMs yet').waitFor();
    await machine.release();
    await page.getByText('Not connected.').waitFor();
    await inspect(page, 'not-connected');
    await machine.start({ tcp: { host: '127.0.0.1', port: Number(new URL(url).port), names: [] } });
    await page.getByText('Not connected.').waitFor({ state: 'detached' });
    await machine.client.call('createVm', { body: { name: 'late', kind: 'attached' } });
    await page.getByRole('checkbox', { name: 'Select late' }).waitFor();
    await machine.client.call('deleteVm', { params: { name: 'late' } });
    await page.getByText('No VMs yet').waitFor();
  });
};
