/** Sizes, durations and instants as people write them. Each reader answers undefined for what it cannot read. */

const binary = { KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30 } as const;
const sizes: Readonly<Record<string, number>> = { '': 1, B: 1, ...binary };

/** Bytes: `4096`, `64KiB`, `16MiB`, `1GiB`. */
export const readSize = (value: string): number | undefined => {
  const match = /^(\d{1,15}) ?([A-Za-z]*)$/.exec(value);
  const factor = sizes[match?.[2] ?? '?'];
  if (!match || factor === undefined) return undefined;
  const bytes = Number(match[1]) * factor;
  return Number.isSafeInteger(bytes) ? bytes : undefined;
};

const durations = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** Milliseconds: `500ms`, `90s`, `15m`, `1h`, `1h30m`, `7d`. */
export const readDuration = (value: string): number | undefined => {
  if (!/^(\d{1,9}(ms|s|m|h|d))+$/.test(value)) return undefined;
  let total = 0;
  for (const [, count, unit] of value.matchAll(/(\d+)(ms|s|m|h|d)/g))
    total += Number(count) * durations[unit as keyof typeof durations];
  return Number.isSafeInteger(total) ? total : undefined;
};

/** Milliseconds since the epoch: an ISO date (midnight UTC) or a date and time with `Z` or an offset. */
export const readInstant = (value: string): number | undefined => {
  const match = /^(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.\d{1,3})?)?(Z|[+-]\d\d:\d\d))?$/.exec(value);
  if (!match) return undefined;
  const ms = Date.parse(value.replace(' ', 'T'));
  if (Number.isNaN(ms)) return undefined;
  const day = new Date(Date.UTC(Number(match[1]), Number(match[2]) - 1, Number(match[3])));
  return day.getUTCMonth() === Number(match[2]) - 1 ? ms : undefined;
};

export const writeDuration = (ms: number): string => {
  for (const unit of ['d', 'h', 'm', 's'] as const) {
    if (ms > 0 && ms % durations[unit] === 0) return `${ms / durations[unit]}${unit}`;
  }
  return `${ms}ms`;
};

export const writeSize = (bytes: number): string => {
  for (const unit of ['GiB', 'MiB', 'KiB'] as const) {
    if (bytes > 0 && bytes % binary[unit] === 0) return `${bytes / binary[unit]}${unit}`;
  }
  return String(bytes);
};
