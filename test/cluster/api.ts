/** A whole API over real stores for tests: `await using api = await startApi(t)`. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { pino } from 'pino';
import { type ApiServer, type ListenOptions, listen, Manager, type ManagerOptions } from '../../src/cluster/index.ts';
import { createKeyFile, openStores, type Stores } from '../../src/store/index.ts';
import { Authority } from '../../src/uplink/authority.ts';
import { Enrolment } from '../../src/uplink/enrolment.ts';
import { type ApiDocument, Contract } from './contract.ts';
import { TestHost } from './host-on-authority.ts';
import { type HttpAnswer, type HttpRequest, http } from './http.ts';

export interface TestApi {
  readonly directory: string;
  readonly socketPath: string;
  readonly stores: Stores;
  readonly host: TestHost;
  readonly manager: Manager;
  readonly server: ApiServer;
  /** Lines that were logged, parsed. */
  readonly contract: Contract;
  readonly logged: readonly Record<string, unknown>[];
  /** Over the unix socket, as root or whoever runs the test, or where the request says. Each answer is held to the document. */
  ask(request: HttpRequest): Promise<HttpAnswer>;
  /** Stops manager and server, keeps the stores, and starts both anew. */
  restart(): Promise<void>;
}

export interface TestApiOptions {
  readonly listen?: Partial<ListenOptions>;
  readonly manager?: Partial<ManagerOptions>;
  /** Whether the host reports by itself. Default true. */
  readonly obeys?: boolean;
  /** Default: in SQLite, and closed at the end. Whoever gives them closes them later than that. */
  readonly stores?: Stores | undefined;
}

export const startApi = async (t: TestContext, options: TestApiOptions = {}): Promise<TestApi> => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-api-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const keyFile = join(directory, 'key');
  createKeyFile(keyFile);
  const own =
    options.stores === undefined ? await openStores({ directory: join(directory, 'stores'), keyFile }) : undefined;
  const stores = options.stores ?? own!;
  const socketPath = join(directory, 'api.sock');
  const logged: Record<string, unknown>[] = [];
  const log = pino({ level: 'debug' }, { write: (line: string) => void logged.push(JSON.parse(line)) });
  const host = new TestHost();
  const stop = new AbortController();
  const obeying = options.obeys === false ? Promise.resolve() : host.obey(stores.region, stop.signal);

  const start = async () => {
    const { region, global } = stores;
    const upkeep = { stores, outgoingFile: join(directory, 'outgoing.backup') };
    const enrolment = new Enrolment({ region, authority: await Authority.open(region, 'local') });
    const manager = await Manager.open({
      region,
      global,
      host,
      images: host,
      log,
      upkeep,
      enrolment,
      ...options.manager,
    });
    const server = await listen({ manager, version: '0.1.0', socketPath, closeMs: 500, ...options.listen });
    return { manager, server };
  };
  let running = await start();
  const end = async (): Promise<void> => {
    await running.server.close();
    await running.manager.close();
  };
  t.after(async () => {
    stop.abort();
    await obeying;
    await end();
    await own?.close();
  });
  const contract = new Contract((await http({ socketPath, path: '/openapi.json' })).json as unknown as ApiDocument);
  return {
    contract,
    directory,
    socketPath,
    stores,
    host,
    logged,
    get manager() {
      return running.manager;
    },
    get server() {
      return running.server;
    },
    ask: async (request) => {
      const answer = await http({ socketPath, ...request });
      contract.check(request.method ?? 'GET', request.path, answer);
      return answer;
    },
    restart: async () => {
      await end();
      running = await start();
    },
  };
};
