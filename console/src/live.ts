/**
 * All VMs and operations, as they are now: one subscription for the whole page, which goes on after breaks. Views read the
 * signals, and are drawn anew when they change.
 */
import { batch, computed, signal } from '@preact/signals';
import type { z } from 'zod';
import type { EventsShape } from '../../src/cluster/routes/events.ts';
import { ApiError, eventsOf, type Operation, type Vm } from './api.ts';

type News = z.output<typeof EventsShape>;

/** `lost`: what is shown may be old, and it is being tried to connect. */
export const connection = signal<'connecting' | 'live' | 'lost'>('connecting');

const vmMap = new Map<string, Vm>();
const operationMap = new Map<string, Operation>();
const vmsVersion = signal(0);
const operationsVersion = signal(0);

/** In order of their names. Undefined: not known yet. */
export const vms = computed<readonly Vm[] | undefined>(() =>
  vmsVersion.value === 0 ? undefined : [...vmMap.values()].toSorted((a, b) => (a.name < b.name ? -1 : 1)),
);

/** Those that have not finished, and those that did while the page was open; newest first. */
export const operations = computed<readonly Operation[]>(() => {
  void operationsVersion.value;
  return [...operationMap.values()].toSorted((a, b) => (a.id > b.id ? -1 : 1));
});

export const operationOf = (id: string): Operation | undefined => {
  void operationsVersion.value;
  return operationMap.get(id);
};

/** Who asked for it knows it before the stream tells. */
export const learn = (operation: Operation): void => {
  if (!operationMap.has(operation.id)) apply({ vms: [], gone: [], operations: [operation] });
};

/** Finished ones that are remembered. */
const finishedMost = 200;

const apply = (news: News): void => {
  for (const vm of news.vms) vmMap.set(vm.name, vm);
  for (const name of news.gone) vmMap.delete(name);
  for (const operation of news.operations) operationMap.set(operation.id, operation);
  if (operationMap.size > finishedMost) {
    const finished = [...operationMap.values()].filter(({ finishedAt }) => finishedAt !== undefined);
    for (const { id } of finished.slice(0, Math.max(0, finished.length - finishedMost))) operationMap.delete(id);
  }
  batch(() => {
    if (news.vms.length + news.gone.length > 0) vmsVersion.value++;
    if (news.operations.length > 0) operationsVersion.value++;
  });
};

const replace = (pages: readonly News[]): void => {
  const unfinished = new Set(pages.flatMap((page) => page.operations.map(({ id }) => id)));
  vmMap.clear();
  // What finished while nobody told us is no more among those that have not.
  for (const [id, { finishedAt }] of operationMap)
    if (finishedAt === undefined && !unfinished.has(id)) operationMap.delete(id);
  const vms = pages.flatMap((page) => page.vms);
  batch(() => {
    apply({ vms, gone: [], operations: pages.flatMap((page) => page.operations) });
    vmsVersion.value++;
    operationsVersion.value++;
  });
};

const forget = (): void => {
  vmMap.clear();
  operationMap.clear();
  batch(() => {
    connection.value = 'connecting';
    vmsVersion.value = 0;
    operationsVersion.value = 0;
  });
};

const firstWaitMs = 500;
const longestWaitMs = 10_000;

/** Until it is ended; then all is forgotten. */
export const startLive = (): (() => void) => {
  const stop = new AbortController();
  void follow(stop.signal);
  return () => {
    stop.abort();
    forget();
  };
};

const follow = async (stop: AbortSignal): Promise<void> => {
  let lastEventId: string | undefined;
  let waitMs = firstWaitMs;
  while (!stop.aborted) {
    let pages: News[] | undefined;
    try {
      const opened = (): void => {
        if (lastEventId !== undefined) connection.value = 'live';
      };
      for await (const { event, id, data } of eventsOf('followEvents', { lastEventId, opened, signal: stop })) {
        if (event === 'begin') pages = [];
        else if (event === 'entries') pages?.push(data as News);
        else if (event === 'changes') apply(data as News);
        else if (event === 'ready') {
          replace(pages ?? []);
          connection.value = 'live';
        }
        lastEventId = id ?? lastEventId;
        waitMs = firstWaitMs;
      }
    } catch (error) {
      if (stop.aborted) return;
      if (error instanceof ApiError && error.status === 401) return;
      // What was told last is too long ago, or of another store: from the beginning.
      if (error instanceof ApiError && error.status >= 400 && error.status < 500) lastEventId = undefined;
    }
    if (stop.aborted) return;
    connection.value = 'lost';
    await pause(waitMs * (0.75 + Math.random() / 2), stop);
    waitMs = Math.min(longestWaitMs, waitMs * 2);
  }
};

/** Shorter when the machine has a network again. */
const pause = (ms: number, stop: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const over = new AbortController();
    const end = (): void => {
      over.abort();
      clearTimeout(timer);
      resolve();
    };
    const timer = setTimeout(end, ms);
    stop.addEventListener('abort', end, { signal: over.signal });
    addEventListener('online', end, { signal: over.signal });
  });
