import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inspect, openPage, signInOn, stage } from './stage.ts';

const expected = /401/;

export const signInTests = (): void => {
  test('sign-in takes a key, keeps it nowhere, and signs out', async (t) => {
    const { key } = await stage();
    const page = await openPage(t, { isSignedIn: false, expected, at: '/vms?q=web' });
    await page.getByRole('button', { name: 'Sign in' }).waitFor();
    await inspect(page, 'sign-in');
    await page.getByText('Where do I get a key?').click();
    await page.getByText('porthole key create').waitFor();
    await signInOn(page, `ph_${'0'.repeat(16)}_${'A'.repeat(43)}`);
    await page.getByRole('alert').getByText('the key is unknown, revoked or out of date').waitFor();
    await signInOn(page, key);
    await page.getByRole('heading', { name: 'VMs', level: 1 }).waitFor();
    assert.equal(await page.getByRole('searchbox').inputValue(), 'web', 'the address is as it was');
    const kept = await page.evaluate('JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])');
    assert.equal(kept, '[{},{},""]');
    await page.reload();
    await page.getByRole('button', { name: 'Sign out' }).click();
    await page.getByLabel('API key').waitFor();
    await page.reload();
    await page.getByLabel('API key').waitFor();
  });

  test('a session whose key is revoked ends on the page by itself', async (t) => {
    const { machine } = await stage();
    const { key, text } = await machine.client.call('createKey', { body: { name: 'short', role: 'viewer' } });
    const page = await openPage(t, { isSignedIn: false, expected });
    await signInOn(page, text);
    await page.getByText('viewer of default').waitFor();
    await page.getByRole('grid', { name: 'VMs' }).waitFor();
    assert.equal(await page.getByRole('button', { name: 'Delete' }).count(), 0, 'a viewer is offered nothing to do');
    await machine.client.call('revokeKey', { params: { id: key.id } });
    await page.getByText('Your session has ended. Sign in again.').waitFor();
  });
};
