/**
 * One Chromium and one `porthole up` with the console, for all tests of the tier: `const page = await openPage(t)`. Whatever
 * page it is, its test fails when the policy of the page was broken, when it asked another server, or when a script failed.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { after, type TestContext } from 'node:test';
import { type Browser, type BrowserContext, chromium, type Page } from 'playwright-core';
import { UpMachine } from '../up/machine.ts';

const root = path.resolve(import.meta.dirname, '../..');
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
/** A page of a busy machine takes its time. */
const patienceMs = 60_000;

export interface Stage {
  readonly machine: UpMachine;
  readonly url: string;
  readonly browser: Browser;
  /** A key of an admin. */
  readonly key: string;
}

let begun: Promise<Stage> | undefined;
const endings: (() => Promise<void> | void)[] = [];
after(async () => {
  for (const end of endings.toReversed()) await end();
});

/** The same for all. */
export const stage = (): Promise<Stage> => {
  begun ??= begin();
  return begun;
};

let image: Promise<void> | undefined;
/** The image that VMs are made from; it stays. */
export const tinyImage = async (): Promise<void> => {
  const { machine } = await stage();
  image ??= machine.tinyImage();
  return image;
};

const begin = async (): Promise<Stage> => {
  const built = spawnSync(process.execPath, ['scripts/console.ts'], { cwd: root, encoding: 'utf8' });
  assert.equal(built.status, 0, built.stderr);
  const machine = new UpMachine({ after: (end) => void endings.push(end as () => Promise<void>) });
  await machine.start({ tcp: { host: '127.0.0.1', port: 0, names: [] } });
  const { text: key } = await machine.client.call('createKey', { body: { name: 'console', role: 'admin' } });
  const browser = await chromium.launch({
    executablePath: '/usr/bin/chromium',
    // In a container without user namespaces it has no sandbox; it shows nothing but what is tested.
    args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'],
    timeout: patienceMs,
  });
  endings.push(() => browser.close());
  return { machine, url: machine.up.url!, browser, key };
};

type SignedInState = Awaited<ReturnType<BrowserContext['storageState']>>;
let signedIn: SignedInState | undefined;

export interface PageOptions {
  /** Where it begins. Default: `/`. */
  readonly at?: string;
  /** Default true: a session is there already. */
  readonly isSignedIn?: boolean;
  /** Answers that are errors, and so noted by the browser, but expected: `401`. */
  readonly expected?: RegExp;
}

/** A browser window of its own. */
export const openPage = async (t: TestContext, options: PageOptions = {}): Promise<Page> => {
  const { browser, url } = await stage();
  const isSignedIn = options.isSignedIn ?? true;
  if (isSignedIn) signedIn ??= await signInState(browser);
  const context = await browser.newContext({ baseURL: url, ...(isSignedIn && { storageState: signedIn! }) });
  context.setDefaultTimeout(patienceMs);
  const faults: string[] = [];
  const page = await context.newPage();
  page.on('pageerror', (error) => faults.push(`a script failed: ${error.message}`));
  page.on('request', (request) => {
    if (new URL(request.url()).origin !== url) faults.push(`it asked ${request.url()}`);
  });
  page.on('console', (message) => {
    const text = `${message.text()} (${message.location().url})`;
    if (message.type() === 'error' && options.expected?.test(text) !== true) faults.push(text);
  });
  t.after(async () => {
    await context.close();
    assert.deepEqual(faults, []);
  });
  await page.goto(options.at ?? '/');
  return page;
};

/** As people do it. */
export const signInOn = async (page: Page, key: string): Promise<void> => {
  await page.getByLabel('API key').fill(key);
  await page.getByRole('button', { name: 'Sign in' }).click();
};

const signInState = async (browser: Browser): Promise<SignedInState> => {
  const { url, key } = await stage();
  const context = await browser.newContext({ baseURL: url });
  const page = await context.newPage();
  await page.goto('/');
  await signInOn(page, key);
  await page.getByRole('button', { name: 'Sign out' }).waitFor();
  const state = await context.storageState();
  await context.close();
  return state;
};

interface AxeResults {
  readonly violations: readonly {
    readonly id: string;
    readonly help: string;
    readonly nodes: readonly { readonly html: string }[];
  }[];
}

const narrow = { width: 400, height: 800 };
const wide = { width: 1280, height: 800 };

/**
 * Light, dark and narrow: nothing for axe to object to, and nothing wider than the window. With PORTHOLE_SCREENSHOTS=1 it keeps
 * a picture of each in docs/console.
 */
export const inspect = async (page: Page, name: string): Promise<void> => {
  const looks = [
    { look: 'light', colorScheme: 'light', viewport: wide },
    { look: 'dark', colorScheme: 'dark', viewport: wide },
    { look: 'narrow', colorScheme: 'light', viewport: narrow },
  ] as const;
  for (const { look, colorScheme, viewport } of looks) {
    await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
    await page.setViewportSize(viewport);
    await page.evaluate('new Promise(requestAnimationFrame)');
    await page.evaluate(axe);
    const { violations } = await page.evaluate<AxeResults>('axe.run()');
    const found = violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html).join(' ')}`);
    assert.deepEqual(found, [], `${name}, ${look}`);
    const overWide = await page.evaluate('document.documentElement.scrollWidth - innerWidth');
    assert.ok(Number(overWide) <= 0, `${name}, ${look}: the page is ${String(overWide)} px wider than its window`);
    if (process.env['PORTHOLE_SCREENSHOTS'] === '1') {
      const directory = path.join(root, 'docs/console');
      mkdirSync(directory, { recursive: true });
      await page.screenshot({ path: path.join(directory, `${name}-${look}.png`) });
    }
  }
  await page.setViewportSize(wide);
  await page.emulateMedia({ colorScheme: 'light' });
};
