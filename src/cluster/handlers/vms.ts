import { Buffer } from 'node:buffer';
import type { z } from 'zod';
import type {
  GuestInside,
  MetadataServerRecord,
  MetadataWayName,
  Once,
  OperationRecord,
  VmStatusRecord,
} from '../../records/index.ts';
import { epochOf, ownHost } from '../../records/index.ts';
import { nameOfIndex, rendered } from '../batch-run.ts';
import type { Answer } from '../idempotency.ts';
import { checkVm, nameOf } from '../identity.ts';
import { ApiError } from '../problem.ts';
import * as routes from '../routes/index.ts';
import { checkName, checkSpecSize, statusOf, type Vm } from '../vms.ts';
import { type Api, answerOf, identityOf, noContent, onceRequest, reply, send, serve, stream } from './serve.ts';

export const isoTime = (ms: number): string => new Date(ms).toISOString();

const metadataAddresses: Readonly<Record<MetadataWayName, string>> = {
  network: 'http://169.254.169.254',
  vsock: 'vsock:2:80',
  serial: 'virtio-serial:/dev/virtio-ports/org.porthole.metadata',
  socket: 'a relay',
};

const metadataView = (
  { ways, hopLimit, facades, imdsV1 }: MetadataServerRecord,
  token: VmStatusRecord['token'],
): z.infer<typeof routes.VmShape>['metadataServer'] => ({
  ways,
  addresses: ways.map((way) => metadataAddresses[way]),
  ...(hopLimit !== undefined && { hopLimit }),
  ...(facades !== undefined && { facades }),
  ...(imdsV1 !== undefined && { imdsV1 }),
  ...(token && {
    token: {
      state: token.state,
      ...(token.claimedAtMs !== undefined && { claimedAt: isoTime(token.claimedAtMs) }),
      ...(token.usedAtMs !== undefined && { usedAt: isoTime(token.usedAtMs) }),
    },
  }),
});

const topView = ({ status, processes, problems, ...ages }: GuestInside) => ({
  ...ages,
  ...(status && {
    status: { ...status, load: [...status.load] as [number, number, number], disks: [...status.disks] },
  }),
  ...(processes && { processes: [...processes] }),
  problems: [...problems],
});

export const vmView = (vm: Vm) => {
  const { id, name, kind, type, vcpus, memoryMiB, network, labels, restart, desired, lost, ...rest } = vm.record;
  const { status } = vm;
  return {
    id,
    name,
    kind,
    type,
    vcpus,
    memoryMiB,
    network,
    labels,
    restart,
    restartWhere: rest.restartWhere ?? 'here',
    stateless: rest.stateless ?? false,
    disk: rest.disk ?? 'local',
    epoch: epochOf(vm.record),
    desired,
    ...(rest.image && { image: rest.image }),
    ...(rest.diskBytes !== undefined && { diskBytes: rest.diskBytes }),
    host: rest.host ?? ownHost,
    status: statusOf(vm),
    reason: lost?.reason ?? status?.reason ?? '',
    bootNumber: status?.bootNumber ?? 0,
    addresses: [rest.addresses?.ipv4, rest.addresses?.ipv6, ...(status?.addresses ?? [])].filter(
      (address) => address !== undefined,
    ),
    ...(rest.addresses?.udp && { udp: rest.addresses.udp }),
    ...(status && { since: isoTime(status.sinceMs) }),
    ninep: rest.ninep ?? false,
    vsock: rest.vsock ?? false,
    ...(rest.metadataServer && { metadataServer: metadataView(rest.metadataServer, status?.token) }),
    ...(rest.libvirtDomain !== undefined && { libvirtDomain: rest.libvirtDomain }),
    ...(status?.bootId !== undefined && { bootId: status.bootId }),
    ...(status?.deviceVersion !== undefined && {
      device: { version: status.deviceVersion, outdated: status.deviceOutdated ?? false },
    }),
    createdAt: isoTime(rest.createdAtMs),
  };
};

export const operationView = ({
  id,
  kind,
  target,
  state,
  step,
  done,
  total,
  failed,
  error,
  ...times
}: OperationRecord) => ({
  id,
  kind,
  target: { name: target.name, ...(target.version !== undefined && { version: target.version }) },
  state,
  step,
  done,
  ...(total !== undefined && { total }),
  ...(failed !== undefined && { failed }),
  ...(error && { error: { code: error.code, detail: error.detail } }),
  createdAt: isoTime(times.createdAtMs),
  ...(times.finishedAtMs !== undefined && { finishedAt: isoTime(times.finishedAtMs) }),
});

const accepted = (vm: Vm, operation: OperationRecord): Answer =>
  answerOf(
    routes.createVm,
    202,
    { vm: vmView(vm), operation: operationView(operation) },
    { location: `/v1/operations/${operation.id}` },
  );

const acceptedMany = (operation: OperationRecord): Answer =>
  answerOf(
    routes.actOnVms,
    202,
    { operation: operationView(operation) },
    { location: `/v1/operations/${operation.id}` },
  );

const consoleInputBytes = 64 * 1024;
const consoleLogBytes = 1024 * 1024;

export const serveVms = (api: Api): void => {
  const { manager } = api;
  const { vms, batches, idempotency, kit } = manager;

  serve(
    api,
    routes.createVm,
    async (c) => {
      const identity = identityOf(c);
      const { account } = identity;
      const { count, firstIndex = 1, ...one } = c.req.valid('json');
      const names =
        count === undefined
          ? [one.name]
          : Array.from({ length: count }, (_, i) => nameOfIndex(one.name, firstIndex + i, kit.regionName));
      for (const name of names) {
        checkName(name);
        checkVm(identity, name);
      }
      if (one.spec !== undefined) {
        // Names and numbers make no difference to what a spec is: the last, which has the longest, stands for all.
        const values = { name: names.at(-1)!, region: kit.regionName, index: firstIndex + names.length - 1 };
        const spec = count === undefined ? one.spec : rendered(one.spec, values);
        checkSpecSize(spec);
        const problems = await kit.host.checkSpec(spec);
        if (problems.some(({ severity }) => severity === 'error'))
          throw new ApiError('BAD_SPEC', 'the spec has mistakes: see problems', { problems });
      }
      const { type, image, diskBytes, spec, placement, ...rest } = one;
      const full = {
        ...rest,
        start: rest.kind === 'managed' && rest.start,
        type,
        image: image && { name: image.name, version: image.version },
        diskBytes,
        placement: { ...placement, host: placement.host, apart: placement.apart },
        spec,
      };
      const once = await onceRequest(c);
      if (count === undefined)
        return send(await idempotency.run(once, (commit) => vms.create(account, full, commit, accepted)));
      const many = { wish: full, count, firstIndex };
      return send(
        await idempotency.run(once, (commit) => batches.create(account, identity.vms, many, commit, acceptedMany)),
      );
    },
    { bodyBytes: 1024 * 1024 },
  );

  serve(
    api,
    routes.actOnVms,
    async (c) => {
      const { account, vms: only } = identityOf(c);
      const { action, selector, graceSeconds } = c.req.valid('json');
      const { names, prefix: namePrefix, labels, status, type } = selector;
      const which = { names, namePrefix, labels, status, type };
      const once = await onceRequest(c);
      return send(
        await idempotency.run(once, (commit) =>
          batches.act(account, only, action, which, graceSeconds, commit, acceptedMany),
        ),
      );
    },
    { bodyBytes: 128 * 1024 },
  );

  serve(api, routes.listVms, async (c) => {
    const { limit, cursor, status, type, prefix, label } = c.req.valid('query');
    const { account, vms: only } = identityOf(c);
    const filters = { status, type, namePrefix: prefix, labels: label, only };
    const page = await vms.list(account, filters, { limit, cursor });
    return reply(routes.listVms, 200, {
      vms: page.vms.map(vmView),
      ...(page.next !== undefined && { next: page.next }),
    });
  });

  serve(api, routes.countVms, async (c) =>
    reply(routes.countVms, 200, { counts: await vms.counts(identityOf(c).account) }),
  );

  serve(api, routes.getVm, async (c) =>
    reply(routes.getVm, 200, vmView(await vms.get(identityOf(c).account, c.req.valid('param').name))),
  );

  for (const [route, kind] of [
    [routes.startVm, 'vm.start'],
    [routes.deleteVm, 'vm.delete'],
  ] as const) {
    serve(api, route, async (c) => {
      const { account } = identityOf(c);
      const { name } = c.req.valid('param');
      const once = await onceRequest(c);
      return send(await idempotency.run(once, (commit) => vms.request(account, name, { kind }, commit, accepted)));
    });
  }

  for (const [route, kind] of [
    [routes.stopVm, 'vm.stop'],
    [routes.rebootVm, 'vm.reboot'],
  ] as const) {
    serve(api, route, async (c) => {
      const { account } = identityOf(c);
      const { name } = c.req.valid('param');
      const { graceSeconds } = c.req.valid('json');
      const once = await onceRequest(c);
      const change = { kind, graceSeconds };
      return send(await idempotency.run(once, (commit) => vms.request(account, name, change, commit, accepted)));
    });
  }

  serve(api, routes.getStatistics, async (c) => {
    const { atMs, values } = await vms.ask(identityOf(c).account, c.req.valid('param').name, (vm) =>
      kit.host.statistics(vm, { signal: c.req.raw.signal }),
    );
    return reply(routes.getStatistics, 200, { at: isoTime(atMs), values: { ...values } });
  });

  serve(api, routes.getTop, async (c) => {
    const { account } = identityOf(c);
    const by = nameOf(identityOf(c));
    const { signal } = c.req.raw;
    const { atMs, values, inside } = await vms.ask(account, c.req.valid('param').name, async (vm) => ({
      ...(await kit.host.statistics(vm, { signal })),
      inside: await kit.host.inside(vm, { by, signal }),
    }));
    return reply(routes.getTop, 200, { host: { at: isoTime(atMs), values: { ...values } }, inside: topView(inside) });
  });

  serve(api, routes.getAttachment, async (c) => {
    const machine = c.req.valid('query');
    const { account } = identityOf(c);
    const { qemu, cloudHypervisor, ninep, vsock, metadataServer, ...rest } = await vms.ask(
      account,
      c.req.valid('param').name,
      (vm) => kit.host.attachment(vm, machine, { signal: c.req.raw.signal }),
    );
    return reply(routes.getAttachment, 200, {
      ...rest,
      qemu: [...qemu],
      cloudHypervisor: [...cloudHypervisor],
      ...(ninep && { ninep: { ...ninep, qemu: [...ninep.qemu] } }),
      ...(vsock && {
        vsock: {
          ...vsock,
          qemu: [...vsock.qemu],
          ofOthers: { ...vsock.ofOthers, cloudHypervisor: [...vsock.ofOthers.cloudHypervisor] },
        },
      }),
      ...(metadataServer && {
        metadataServer: {
          ...(metadataServer.vsock && { vsock: metadataServer.vsock }),
          ...(metadataServer.sockets && { sockets: metadataServer.sockets }),
          ...(metadataServer.serial && {
            serial: { ...metadataServer.serial, qemu: [...metadataServer.serial.qemu] },
          }),
        },
      }),
    });
  });

  serve(api, routes.tellBoot, async (c) => {
    const { record } = await vms.find(identityOf(c).account, c.req.valid('param').name);
    if (record.kind !== 'attached')
      throw new ApiError('WRONG_STATE', `the VM "${record.name}" is started here, so its boots are known`);
    const once = await onceRequest(c);
    return send(
      await idempotency.runOutside(
        once,
        async (once) => {
          const { bootId, number } = await kit.host.boot(record, { once });
          return answerOf(routes.tellBoot, 201, { bootId, number });
        },
        isOpen,
      ),
    );
  });

  serve(api, routes.renewDevice, async (c) => {
    const { account } = identityOf(c);
    const { name } = c.req.valid('param');
    const once = await onceRequest(c);
    const renewed = async (): Promise<Answer> => {
      const device = await vms.ask(account, name, (vm) => kit.host.renewDevice(vm));
      return answerOf(routes.renewDevice, 200, { ...device });
    };
    return send(await idempotency.runOutside(once, renewed, isOpen));
  });

  serve(api, routes.getConsole, async (c) => {
    const { offset, tail, limit } = c.req.valid('query');
    const range = { offset, tailBytes: tail, mostBytes: Math.min(limit, consoleLogBytes), signal: c.req.raw.signal };
    const log = await vms.ask(identityOf(c).account, c.req.valid('param').name, async (vm) =>
      kit.host.console(vm).log(range),
    );
    return new Response(Buffer.from(log.bytes), {
      headers: {
        'content-type': 'application/octet-stream',
        'cache-control': 'no-store',
        'console-start': String(log.start),
        'console-offset': String(log.offset),
        'console-end': String(log.end),
      },
    });
  });

  serve(api, routes.streamConsole, async (c) => {
    const { account } = identityOf(c);
    const { name } = c.req.valid('param');
    const last = c.req.valid('header')['last-event-id'];
    if (last !== undefined && !/^\d{1,15}$/.test(last))
      throw new ApiError('BAD_REQUEST', 'the Last-Event-ID is none of a console stream');
    const offset = last === undefined ? c.req.valid('query').offset : Number(last);
    return stream(c, api, async (signal) => {
      const { offset: start, pieces } = await vms.ask(account, name, async (vm) =>
        kit.host.console(vm).stream({ offset, signal }),
      );
      return (async function* () {
        yield { event: 'start', id: String(start), data: { offset: start } };
        for await (const { offset: at, bytes } of pieces)
          yield {
            event: 'output',
            id: String(at + bytes.length),
            data: { offset: at, base64: Buffer.from(bytes).toString('base64') },
          };
      })();
    });
  });

  serve(
    api,
    routes.writeConsole,
    async (c) => {
      const { account } = identityOf(c);
      const { name } = c.req.valid('param');
      const bytes = new Uint8Array(await c.req.arrayBuffer());
      const { signal } = c.req.raw;
      const type = async (once: Once | undefined): Promise<Answer> => {
        if (once?.isRepeat === true) throw new TypedPerhaps(name);
        if (bytes.length > 0) await vms.ask(account, name, async (vm) => kit.host.console(vm).write(bytes, { signal }));
        return noContent;
      };
      const mayBeTyped = (error: unknown): boolean => error instanceof TypedPerhaps || isOpen(error);
      return send(await idempotency.runOutside(await onceRequest(c), type, mayBeTyped));
    },
    { bodyBytes: consoleInputBytes },
  );
};

/** Nobody knows what a serial port has taken: better not at all than twice. */
class TypedPerhaps extends ApiError {
  constructor(name: string) {
    const what = `whether this was typed into the console of "${name}" before the daemon ended or the connection broke is not known`;
    super('CONFLICT', `${what}; look at the console, and type what is missing with a new Idempotency-Key`);
  }
}

/** Whether an effect on a host may have happened although the call failed. */
export const isOpen = (error: unknown): boolean => {
  const code = (error as { readonly code?: unknown } | undefined)?.code;
  return typeof code !== 'string' || code === 'HOST_UNAVAILABLE' || !/^[A-Z_]+$/.test(code);
};
