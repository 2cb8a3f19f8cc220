/**
 * Where a manager takes the connections of its region's hosts. What a host may do is decided by its certificate, which names
 * it, together with its record in the store, which says that this certificate is its own now; what it may see and change is
 * decided by `host-store.ts`.
 */
import { randomBytes } from 'node:crypto';
import { connect as connectHttp2, performServerHandshake } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { createServer, type SecureContextOptions, type Server, type TLSSocket } from 'node:tls';
import { decodeRecord, encodeRecord, HostRecord, hostKey, hostLiveKey, type ImageBytes } from '../records/index.ts';
import { keyText, type Page, prefixRange, type Store } from '../store/index.ts';
import { Authority, hostOfAltName, keyIdOf } from './authority.ts';
import { answerCalls, Caller, endConnection, keepAlive, sessionOptions } from './calls.ts';
import { Enrolment, enrolCalls } from './enrolment.ts';
import { Fleet, type FleetOptions } from './fleet.ts';
import { frameLimits } from './frames.ts';
import { type HostCalls, hostCalls } from './host-calls.ts';
import { grantHostLease } from './host-lease.ts';
import { HostStore } from './host-store.ts';
import { alpnOf, heartbeat, purposeOf, purposes } from './protocols.ts';
import { type HostFacts, slots, storeCalls } from './store-calls.ts';
import { storeHandlers } from './store-service.ts';
import { UplinkError } from './uplink-error.ts';
import { VmFeed } from './vm-feed.ts';

export interface UplinkServerOptions extends Pick<FleetOptions, 'checkSpec' | 'version' | 'answerWithinMs'> {
  readonly region: Store;
  readonly regionName: string;
  /** Of which hosts get those of their VMs. */
  readonly images: ImageBytes;
  readonly address: { readonly host: string; readonly port: number };
  /** How long a host need not be heard of before its VMs may start elsewhere; default: 15. */
  readonly hostLeaseSeconds?: number | undefined;
  /** How often a manager makes itself another certificate; default: daily. */
  readonly renewCredentialsMs?: number | undefined;
  readonly onTrouble: (what: string) => void;
}

/** A connection, with what ends it. */
interface Connected {
  readonly host: string;
  readonly keyId: string;
  readonly end: () => void;
  /** Why it may do nothing any more. */
  refusal: UplinkError | undefined;
}

const hostPrefix = 'host/';
const leaseSeconds = 15;
const hostLeaseSeconds = 15;
const keepLeaseMs = 4_000;
const againAfterMs = 500;
const handshakeMs = 10_000;
/** Of connections that have no certificate yet. */
const enrolling = { most: 32, withinMs: 20_000 } as const;
/** Of all there are, so that this process keeps files for other work. */
const mostConnections = 8_192;
/** Of one host: it needs two, and those before them may not have ended yet. */
const mostOfHost = 6;
const renewCredentialsMs = 24 * 3_600_000;

export class UplinkServer implements AsyncDisposable {
  /** What managers ask of hosts: each VM's own is asked. */
  readonly hosts: Fleet;
  readonly enrolment: Enrolment;
  readonly authority: Authority;
  readonly #options: UplinkServerOptions;
  readonly #id = randomBytes(8).toString('hex');
  readonly #server: Server;
  readonly #feed: VmFeed;
  readonly #connected = new Set<Connected>();
  readonly #callers = new Map<string, Caller<HostCalls>>();
  #enrolling = 0;
  readonly #stop = new AbortController();
  #loops: Promise<unknown> = Promise.resolve();

  private constructor(options: UplinkServerOptions, authority: Authority, tls: ServerCredentials) {
    this.#options = options;
    this.authority = authority;
    const { region, onTrouble, checkSpec, version, answerWithinMs, regionName } = options;
    this.enrolment = new Enrolment({ region, authority });
    this.#feed = new VmFeed({ region, onTrouble });
    this.hosts = new Fleet({
      region,
      feed: this.#feed,
      callers: this.#callers,
      checkSpec,
      version,
      answerWithinMs,
      name: regionName,
    });
    this.#server = createServer(
      {
        ...tls,
        requestCert: true,
        // Who has none may enrol; all else is refused below.
        rejectUnauthorized: false,
        ALPNProtocols: purposes.flatMap(alpnOf),
        handshakeTimeout: handshakeMs,
      },
      (socket) => {
        socket.on('error', () => socket.destroy());
        this.#take(socket).catch((error: unknown) => {
          socket.destroy();
          onTrouble(`a host's connection failed: ${(error as Error).message}`);
        });
      },
    );
    this.#server.maxConnections = mostConnections;
    // Node leaves it open, as it does where the handshake took too long: nobody has heard of it by then.
    this.#server.on('tlsClientError', (_, socket) => socket.destroy());
  }

  /** Resolves when hosts can connect. StoreError; what `listen` rejects with. */
  static async open(options: UplinkServerOptions): Promise<UplinkServer> {
    const authority = await Authority.open(options.region, options.regionName);
    const server = new UplinkServer(options, authority, await credentialsOf(authority));
    await server.#listen();
    return server;
  }

  async #listen(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#server.once('error', reject).listen(this.#options.address, resolve);
    await promise;
    this.#server.off('error', reject).on('error', (error) => this.#options.onTrouble(error.message));
    const { signal } = this.#stop;
    this.#loops = Promise.all([this.#feed.run(signal), this.#followHosts(signal), this.#renewCredentials(signal)]);
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  async close(): Promise<void> {
    this.#stop.abort();
    const closed = new Promise((resolve) => void this.#server.close(resolve));
    for (const { end } of this.#connected) end();
    await Promise.all([closed, this.#loops]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #take(socket: TLSSocket): Promise<void> {
    const purpose = purposeOf(socket.alpnProtocol);
    if (purpose === 'enrol') return this.#enrol(socket);
    const certificate = socket.authorized ? socket.getPeerX509Certificate() : undefined;
    const host = hostOfAltName(certificate?.subjectAltName, this.#options.regionName);
    if (purpose === undefined || certificate === undefined || host === undefined) {
      socket.destroy();
      return;
    }
    const keyId = keyIdOf(certificate.publicKey.export({ type: 'spki', format: 'der' }));
    const connected: Connected = { host, keyId, end: () => endConnection(socket), refusal: undefined };
    this.#connected.add(connected);
    socket.once('close', () => this.#connected.delete(connected));
    // Of its key: who had its name before ends none of its own.
    const its = [...this.#connected].filter((other) => other.host === host && other.keyId === keyId);
    for (const older of its.slice(0, -mostOfHost)) older.end();
    // Known before anything is answered, and by the watch from here on.
    const record = await this.#record(host);
    connected.refusal ??= refusalOf(connected, record);
    if (this.#stop.signal.aborted) socket.destroy();
    if (socket.destroyed) return;
    if (purpose === 'store') this.#serveStore(socket, connected);
    else if (connected.refusal === undefined) this.#holdCalls(socket, connected);
    else socket.destroy();
  }

  #serveStore(socket: TLSSocket, connected: Connected): void {
    const { region, regionName, images, onTrouble } = this.#options;
    const { host } = connected;
    const session = performServerHandshake(socket, sessionOptions);
    session.on('error', () => {});
    keepAlive(session, socket, heartbeat);
    let isLive = false;
    answerCalls(session, {
      table: storeCalls,
      handlers: storeHandlers({
        store: new HostStore({ region, host, feed: this.#feed }),
        region: regionName,
        host,
        manager: this.#id,
        images,
        onHello: async (facts) => {
          await this.#learn(connected, facts);
          if (isLive) return;
          isLive = true;
          const gone = new AbortController();
          session.once('close', () => gone.abort());
          if (session.destroyed) gone.abort();
          void this.#stayLive(connected, facts, gone.signal);
        },
        renew: async (request) => this.enrolment.renew(await this.#its(connected), request),
        lease: async (machine, signal) =>
          grantHostLease(region, await this.#its(connected), {
            machine,
            seconds: this.#options.hostLeaseSeconds ?? hostLeaseSeconds,
            signal,
          }),
      }),
      gate: () => {
        if (connected.refusal !== undefined) throw connected.refusal;
      },
      mostBytes: frameLimits.askedBytes,
      mostBytesTogether: slots * frameLimits.askedBytes,
      onBug: (call, error) => onTrouble(`"${call}" of host "${host}" failed: ${(error as Error).stack}`),
    });
  }

  /** The connection by which the host is asked: the newest of them. */
  #holdCalls(socket: TLSSocket, { host }: Connected): void {
    const session = connectHttp2(`https://${host}.invalid`, { ...sessionOptions, createConnection: () => socket });
    session.on('error', () => {});
    keepAlive(session, socket, heartbeat);
    const caller = new Caller(session, socket, hostCalls);
    this.#callers.get(host)?.end();
    this.#callers.set(host, caller);
    session.once('close', () => {
      if (this.#callers.get(host) === caller) this.#callers.delete(host);
    });
  }

  #enrol(socket: TLSSocket): void {
    if (this.#enrolling >= enrolling.most) {
      socket.destroy();
      return;
    }
    this.#enrolling++;
    const late = setTimeout(() => socket.destroy(), enrolling.withinMs);
    const connected: Connected = { host: '', keyId: '', end: () => endConnection(socket), refusal: undefined };
    this.#connected.add(connected);
    socket.once('close', () => {
      this.#enrolling--;
      clearTimeout(late);
      this.#connected.delete(connected);
    });
    const session = performServerHandshake(socket, { maxSessionMemory: 1, settings: { maxConcurrentStreams: 1 } });
    session.on('error', () => {});
    answerCalls(session, {
      table: enrolCalls,
      handlers: {
        enrol: async ({ joinKey, name, request, facts }) => {
          const { certificate } = await this.enrolment.enrol(joinKey, name, request, facts);
          return { region: this.#options.regionName, host: name, certificate };
        },
      },
      mostBytes: frameLimits.enrolBytes,
      onBug: (_, error) => this.#options.onTrouble(`enrolling a host failed: ${(error as Error).stack}`),
    });
  }

  // --- records of hosts ---

  async #record(host: string): Promise<HostRecord | undefined> {
    const key = hostKey(host);
    const entry = await this.#options.region.get(key);
    return entry && decodeRecord(HostRecord, key, entry.value);
  }

  /** UPLINK_REFUSED where it is another's by now. */
  async #its(connected: Connected): Promise<HostRecord> {
    const record = await this.#record(connected.host);
    const refusal = refusalOf(connected, record);
    if (record === undefined || refusal !== undefined) throw refusal ?? removed(connected.host);
    return record;
  }

  /** What a host says of itself, where that is other than was known. */
  async #learn(connected: Connected, { capacity, uids }: HostFacts): Promise<void> {
    const { region } = this.#options;
    const key = hostKey(connected.host);
    for (;;) {
      const entry = await region.get(key);
      const record = entry && decodeRecord(HostRecord, key, entry.value);
      const refusal = refusalOf(connected, record);
      if (entry === undefined || record === undefined || refusal !== undefined)
        throw refusal ?? removed(connected.host);
      const { capacity: _capacity, uids: _uids, ...rest } = record;
      const now = { ...rest, ...(capacity && { capacity }), ...(uids && { uids }) };
      if (JSON.stringify(sorted(now)) === JSON.stringify(sorted(record))) return;
      const outcome = await region.commit({
        conditions: [{ key, modRevision: entry.modRevision }],
        operations: [{ type: 'put', key, value: encodeRecord(now) }],
      });
      if (outcome.committed) return;
    }
  }

  /** Says that the host is connected, by a lease, for as long as it is. */
  async #stayLive({ host }: Connected, { version }: HostFacts, gone: AbortSignal): Promise<void> {
    const { region, onTrouble } = this.#options;
    while (!gone.aborted) {
      try {
        const record = await this.#record(host);
        if (record === undefined) return;
        const { id: leaseId } = await region.grantLease(leaseSeconds);
        const live = { id: record.id, manager: this.#id, sinceMs: Date.now(), version };
        await region.commit({
          operations: [{ type: 'put', key: hostLiveKey(host), value: encodeRecord(live), leaseId }],
        });
        try {
          while (!gone.aborted) {
            await pause(keepLeaseMs, undefined, { signal: gone, ref: false }).catch(() => {});
            if (!gone.aborted) await region.keepAlive(leaseId);
          }
        } finally {
          // Where it has come back to another manager meanwhile, that one's lease has the record.
          if (!this.#stop.signal.aborted || gone.aborted) await region.revokeLease(leaseId).catch(() => {});
        }
      } catch (error) {
        if (gone.aborted) return;
        onTrouble(`saying that host "${host}" is connected failed, trying again: ${(error as Error).message}`);
        await pause(againAfterMs, undefined, { ref: false });
      }
    }
  }

  /** Ends the connections of hosts that are removed, or whose certificate is another's. */
  async #followHosts(signal: AbortSignal): Promise<void> {
    const { region, onTrouble } = this.#options;
    const range = prefixRange(hostPrefix);
    while (!signal.aborted) {
      try {
        const known = new Map<string, HostRecord>();
        let revision: number | undefined;
        for (let { start } = range, more = true; more; ) {
          const page: Page = await region.range({ ...range, start }, { revision });
          ({ revision } = page);
          for (const { key, value } of page.entries)
            known.set(keyText(key).slice(hostPrefix.length), decodeRecord(HostRecord, keyText(key), value));
          more = page.next !== undefined;
          if (page.next !== undefined) start = page.next;
        }
        for (const connected of this.#connected) this.#check(connected, known.get(connected.host));
        for await (const { events } of region.watch(range, { from: (revision ?? 0) + 1, signal }))
          for (const event of events) {
            const key = keyText(event.type === 'put' ? event.entry.key : event.key);
            const record = event.type === 'put' ? decodeRecord(HostRecord, key, event.entry.value) : undefined;
            for (const connected of this.#connected)
              if (hostKey(connected.host) === key) this.#check(connected, record);
          }
      } catch (error) {
        if (signal.aborted) return;
        onTrouble(`following the records of hosts failed, beginning anew: ${(error as Error).message}`);
        await pause(againAfterMs, undefined, { signal }).catch(() => {});
      }
    }
  }

  #check(connected: Connected, record: HostRecord | undefined): void {
    if (connected.host === '') return;
    connected.refusal ??= refusalOf(connected, record);
    if (connected.refusal !== undefined) connected.end();
  }

  async #renewCredentials(signal: AbortSignal): Promise<void> {
    const { renewCredentialsMs: everyMs = renewCredentialsMs } = this.#options;
    while (!signal.aborted) {
      await pause(everyMs, undefined, { signal, ref: false }).catch(() => {});
      if (!signal.aborted) this.#server.setSecureContext(await credentialsOf(this.authority));
    }
  }
}

type ServerCredentials = Required<Pick<SecureContextOptions, 'cert' | 'key' | 'ca' | 'minVersion'>>;

/**
 * All of a server's secure context, of which nothing is left when it is set anew. The authority's certificate comes with the
 * manager's, for hosts that enrol and know but its fingerprint.
 */
const credentialsOf = async (authority: Authority): Promise<ServerCredentials> => {
  const { certificate, key } = await authority.issueManager();
  return {
    cert: `${certificate}\n${authority.certificate}`,
    key,
    ca: authority.certificate,
    minVersion: 'TLSv1.3',
  };
};

const refusalOf = ({ host, keyId }: Connected, record: HostRecord | undefined): UplinkError | undefined =>
  record?.certificateId === keyId ? undefined : removed(host);

const removed = (host: string): UplinkError =>
  new UplinkError('UPLINK_REFUSED', `the host "${host}" was removed from the region, or enrolled anew elsewhere`);

const sorted = (record: object): object =>
  Object.fromEntries(Object.entries(record).toSorted(([a], [b]) => (a < b ? -1 : 1)));
