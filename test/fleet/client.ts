/** One user of the fleet, who asks whichever manager, remembers what was acknowledged, and looks whether it is so. */
import assert from 'node:assert/strict';
import { setTimeout as pause } from 'node:timers/promises';
import { type HttpAnswer, type HttpRequest, http } from '../cluster/http.ts';
import type { Seeded } from './seeded.ts';

export interface ClientOptions {
  readonly name: string;
  /** Of its VMs. */
  readonly image: string;
  readonly key: string;
  readonly choices: Seeded;
  readonly urls: readonly string[];
  /** Names of VMs of another account, which must never be shown. */
  readonly others: () => readonly string[];
}

/** What a path may have: what was acknowledged last, and all that was sent since and perhaps not done. */
interface Value {
  acknowledged: string | undefined;
  readonly possible: Set<string>;
}

interface OwnVm {
  readonly name: string;
  readonly secret: string;
  readonly values: Map<string, Value>;
  desired: 'running' | 'stopped';
}

const answerMs = 2_500;
const againMs = 100;
const mostVms = 6;
const secretOf = (name: string): string => `secret-of-${name}`;
const paths = ['a', 'b', 'deep/c'] as const;

export class FleetClient {
  readonly vms = new Map<string, OwnVm>();
  /** Refused after an earlier try that was not answered, which may come through all the same. */
  readonly perhaps = new Set<string>();
  readonly counts = new Map<string, number>();
  readonly name: string;
  readonly #options: ClientOptions;
  #serial = 0;

  constructor(options: ClientOptions) {
    this.#options = options;
    this.name = options.name;
  }

  #count(what: string): void {
    this.counts.set(what, (this.counts.get(what) ?? 0) + 1);
  }

  /** Of some manager; undefined when none was heard in time. */
  async ask(request: HttpRequest): Promise<HttpAnswer | undefined> {
    const { key, choices, urls } = this.#options;
    try {
      return await Promise.race([
        http({ ...request, url: choices.of(urls), key }),
        pause(answerMs, undefined, { ref: false }),
      ]);
    } catch {
      return undefined;
    }
  }

  /** The same request until it is known what became of it. */
  async #once(request: HttpRequest, signal: AbortSignal, onOpen?: () => void): Promise<HttpAnswer | undefined> {
    const headers = { 'idempotency-key': `${this.name}-${this.#serial++}` };
    for (;;) {
      const answer = await this.ask({ ...request, headers });
      const code = String(answer?.json?.['code'] ?? '');
      const isOpen =
        answer === undefined ||
        answer.status === 503 ||
        ['IDEMPOTENCY_BUSY', 'CONFLICT', 'TOO_MANY_REQUESTS', 'WRONG_STATE'].includes(code);
      if (!isOpen) return answer;
      onOpen?.();
      this.#count(`again ${code || 'lost'}`);
      if (signal.aborted) return undefined;
      await pause(againMs);
    }
  }

  /** Until the signal; then no more is begun, and what is open is asked for until `last`. */
  async run(signal: AbortSignal, last: AbortSignal): Promise<void> {
    const { choices } = this.#options;
    while (!signal.aborted) {
      const vm = choices.of([...this.vms.values(), undefined]);
      const what = choices.next();
      if (vm === undefined || (what < 0.1 && this.vms.size < mostVms)) {
        if (this.vms.size < mostVms) await this.#create(last);
      } else if (what < 0.2) await this.#delete(vm, last);
      else if (what < 0.3) await this.#turn(vm, last);
      else if (what < 0.7) await this.#write(vm, last);
      else if (what < 0.9) await this.#read(vm);
      await this.#pry();
    }
  }

  #has(name: string): void {
    this.vms.set(name, { name, secret: secretOf(name), values: new Map(), desired: 'running' });
  }

  /** When nothing is under way any more: which of those that may have come about did. */
  learn(present: ReadonlySet<string>): void {
    for (const name of this.perhaps) if (present.has(name)) this.#has(name);
  }

  async #create(signal: AbortSignal): Promise<void> {
    const name = `${this.name}-${this.#serial++}`;
    const spec = `porthole: 1\nmetadata: { secrets: { own: ${secretOf(name)} } }\n`;
    const body = { name, type: 'nano', image: { name: this.#options.image }, diskBytes: 2 ** 20, spec };
    let isSure = true;
    const request = { method: 'POST', path: '/v1/vms', body };
    const answer = await this.#once(request, signal, () => (isSure = false));
    assert.ok(answer, `the creation of ${name} was never answered`);
    if (answer.status === 202) this.#has(name);
    else {
      assert.match(answer.text, /NO_HOST|QUOTA_EXCEEDED/, `${name}: ${answer.text}`);
      if (!isSure) this.perhaps.add(name);
    }
    this.#count(answer.status === 202 ? 'created' : 'no room');
  }

  async #delete(vm: OwnVm, signal: AbortSignal): Promise<void> {
    const answer = await this.#once({ method: 'DELETE', path: `/v1/vms/${vm.name}` }, signal);
    assert.equal(answer?.status, 202, `deleting ${vm.name}: ${answer?.text}`);
    this.vms.delete(vm.name);
    this.#count('deleted');
  }

  async #turn(vm: OwnVm, signal: AbortSignal): Promise<void> {
    const desired = vm.desired === 'running' ? 'stopped' : 'running';
    const path = `/v1/vms/${vm.name}/${desired === 'running' ? 'start' : 'stop'}`;
    const answer = await this.#once({ method: 'POST', path, body: {} }, signal);
    assert.equal(answer?.status, 202, `turning ${vm.name}: ${answer?.text}`);
    vm.desired = desired;
    this.#count('turned');
  }

  async #write(vm: OwnVm, signal: AbortSignal): Promise<void> {
    const path = this.#options.choices.of(paths);
    const text = `${vm.name} ${path} ${this.#serial++}`;
    const value = vm.values.get(path) ?? { acknowledged: undefined, possible: new Set() };
    vm.values.set(path, value);
    value.possible.add(text);
    const answer = await this.#once({ method: 'PUT', path: `/v1/vms/${vm.name}/metadata/${path}`, body: text }, signal);
    if (answer?.status !== 200) {
      // Its tree is not there before the host has heard of it.
      assert.ok(answer === undefined || answer.status === 404, `writing ${vm.name}/${path}: ${answer?.text}`);
      this.#count('not written');
      return;
    }
    value.acknowledged = text;
    value.possible.clear();
    value.possible.add(text);
    this.#count('written');
  }

  async #read(vm: OwnVm): Promise<void> {
    for (const [path, value] of vm.values) if (await this.look(vm, path, value)) this.#count('read');
  }

  /** Whether it could be read; then it was right. */
  async look(vm: OwnVm, path: string, { acknowledged, possible }: Value): Promise<boolean> {
    const answer = await this.ask({ path: `/v1/vms/${vm.name}/metadata/${path}` });
    if (answer?.status === 200) {
      assert.ok(
        possible.has(answer.text),
        `${vm.name}/${path} is "${answer.text}", and "${acknowledged}" was acknowledged`,
      );
      return true;
    }
    const code = String(answer?.json?.['code']);
    const isNotFound = code === 'PATH_NOT_FOUND';
    assert.ok(!isNotFound || acknowledged === undefined, `${vm.name}/${path} was acknowledged and is lost`);
    assert.notEqual(code, 'VM_NOT_FOUND', `${vm.name} is lost: ${answer?.text}`);
    return isNotFound;
  }

  /** Nothing of another account is shown. */
  async #pry(): Promise<void> {
    const { choices, others } = this.#options;
    const names = others();
    if (names.length === 0 || !choices.chance(0.3)) return;
    const name = choices.of(names);
    const path = choices.of([
      `/v1/vms/${name}`,
      `/v1/vms/${name}/metadata/secrets/own`,
      `/v1/vms/${name}/spec`,
      '/v1/vms',
      '/v1/audit?regions=all',
    ]);
    const answer = await this.ask({ path });
    if (answer === undefined || answer.status >= 500) return;
    if (path.startsWith('/v1/vms/')) assert.equal(answer.status, 404, `${path}: ${answer.text}`);
    assert.ok(!answer.text.includes(`"${name}"`), `${path} shows ${name}`);
    this.#count('pried');
  }
}
