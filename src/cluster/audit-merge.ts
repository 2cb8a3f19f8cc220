/** Pages of many hosts' audit logs as one page, in the order in which hosts kept their records. */
import { Buffer } from 'node:buffer';
import { z } from 'zod';
import type { AuditPlace } from '../records/index.ts';
import { ApiError } from './problem.ts';

/** A record of a host's log, among those of all hosts. */
export interface Place {
  /** When its host kept it: rises with the number. */
  readonly atMs: number;
  readonly region: string;
  readonly host: string;
  readonly sequence: number;
}

export interface Placed {
  readonly place: Place;
}

export interface PlacedPage<T extends Placed> {
  readonly events: readonly T[];
  /** How far was looked; undefined: to the end. */
  readonly next: Place | undefined;
}

const compareText = (a: string, b: string): number => (a < b ? -1 : Number(a > b));

/** Oldest first: by time, then by where it is; records of one host by their numbers. */
const compare = (a: Place, b: Place): number =>
  a.atMs - b.atMs || compareText(a.region, b.region) || compareText(a.host, b.host) || a.sequence - b.sequence;

/**
 * The first `limit` of all. What comes after the place that was looked through least is left for a later page: something before
 * it may not have been found yet.
 */
export const merged = <T extends Placed>(
  pages: readonly PlacedPage<T>[],
  { limit, newestFirst }: { readonly limit: number; readonly newestFirst: boolean },
): PlacedPage<T> => {
  const inOrder = newestFirst ? (a: Place, b: Place): number => compare(b, a) : compare;
  const [horizon] = pages.flatMap(({ next }) => next ?? []).toSorted(inOrder);
  const events = pages
    .flatMap((page) => page.events)
    .filter(({ place }) => horizon === undefined || inOrder(place, horizon) <= 0)
    .toSorted((a, b) => inOrder(a.place, b.place));
  if (events.length <= limit) return { events, next: horizon };
  return { events: events.slice(0, limit), next: events[limit - 1]!.place };
};

/** Whether each of a page comes after the one before it, and all after that place: else its reader would not get on. */
export const getsOn = (
  { events, next }: PlacedPage<Placed>,
  { after, newestFirst }: { readonly after: Place | undefined; readonly newestFirst: boolean },
): boolean => {
  const isBefore = (a: Place, b: Place): boolean => (newestFirst ? compare(b, a) : compare(a, b)) < 0;
  const places = [...(after === undefined ? [] : [after]), ...events.map(({ place }) => place)];
  const last = places.at(-1);
  if (next !== undefined && last !== undefined && (events.length === 0 ? !isBefore(last, next) : isBefore(next, last)))
    return false;
  return places.every((place, i) => i === 0 || isBefore(places[i - 1]!, place));
};

/** Where the log of a host is read on when all up to a place was told of all hosts. */
export const placeAt = (
  { atMs, sequence, ...place }: Place,
  { region, host, newestFirst }: { readonly region: string; readonly host: string; readonly newestFirst: boolean },
): AuditPlace => {
  const order = compareText(region, place.region) || compareText(host, place.host);
  if (order === 0) return { atMs, sequence };
  // Of the same moment, hosts before it were told of, and those after it were not.
  if (newestFirst) return { atMs: order > 0 ? atMs : atMs + 1 };
  return { atMs: order < 0 ? atMs : atMs - 1 };
};

const name = z.string().max(64);
const Cursor = z.tuple([z.int().nonnegative(), name, name, z.int().nonnegative()]);

export const writePlace = ({ atMs, region, host, sequence }: Place): string =>
  Buffer.from(JSON.stringify([atMs, region, host, sequence] satisfies z.input<typeof Cursor>)).toString('base64url');

/** BAD_CURSOR. */
export const readPlace = (cursor: string): Place => {
  try {
    const [atMs, region, host, sequence] = Cursor.parse(JSON.parse(Buffer.from(cursor, 'base64url').toString()));
    return { atMs, region, host, sequence };
  } catch {
    throw new ApiError('BAD_CURSOR', 'the cursor is not one of this server; leave it out to start anew');
  }
};
