/** Times and sizes in words, and words as sizes. */
import { InvalidArgumentError } from 'commander';

const steps = [
  { unit: 'd', ms: 24 * 3600 * 1000 },
  { unit: 'h', ms: 3600 * 1000 },
  { unit: 'm', ms: 60 * 1000 },
  { unit: 's', ms: 1000 },
] as const;

/** How long ago: "12s", "3m", "5h", "4d". A clock that is behind says "0s". */
export const ago = (ms: number, nowMs: number): string => {
  const passed = Math.max(0, nowMs - ms);
  const { unit, ms: size } = steps.find((step) => passed >= step.ms) ?? steps[3];
  return `${Math.floor(passed / size)}${unit}`;
};

/** A moment for people: in UTC, to the second, and how long ago or in how long. */
export const moment = (ms: number, nowMs: number): string => {
  const text = `${new Date(ms).toISOString().slice(0, 19)}Z`;
  return ms > nowMs ? `${text} (in ${ago(nowMs, ms)})` : `${text} (${ago(ms, nowMs)} ago)`;
};

const binaryUnits = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const;

/** "512 B", "1.5 KiB", "30 GiB". */
export const size = (bytes: number): string => {
  let value = bytes;
  let unit = 0;
  for (; value >= 1024 && unit < binaryUnits.length - 1; unit++) value /= 1024;
  const text = unit === 0 || value >= 10 ? value.toFixed(0) : value.toFixed(1).replace(/\.0$/, '');
  return `${text} ${binaryUnits[unit]}`;
};

const sizePattern = /^(\d{1,12})([KMGT]?)(?:iB)?$/;

/** "10G", "512MiB", "1073741824" as bytes; K, M, G and T are powers of 1024. */
export const parseSize = (text: string): number => {
  const [, digits, unit] = sizePattern.exec(text) ?? [];
  const bytes = Number(digits) * 1024 ** ' KMGT'.indexOf(unit || ' ');
  if (digits !== undefined && bytes > 0 && Number.isSafeInteger(bytes)) return bytes;
  throw new InvalidArgumentError('Write a size as in "10G" or "512M".');
};

const agoPattern = /^(\d{1,6})([smhd])$/;

/** A moment in milliseconds since the epoch: "15m" or "2d" ago, or a date and time of ISO 8601. */
export const parseMoment =
  (nowMs: number) =>
  (text: string): number => {
    const [, count, unit] = agoPattern.exec(text) ?? [];
    const step = steps.find((candidate) => candidate.unit === unit);
    const ms = step === undefined ? Date.parse(text) : nowMs - Number(count) * step.ms;
    if (!Number.isNaN(ms) && ms >= 0 && (step !== undefined || /^\d{4}-/.test(text))) return ms;
    throw new InvalidArgumentError(
      'Write how long ago, as in "15m", "2h" or "3d", or a date as "2026-03-01T12:00:00Z".',
    );
  };

/** "30s", "5m", "2h", "90d" as seconds. */
export const parseDuration = (text: string): number => {
  const [, count, unit] = agoPattern.exec(text) ?? [];
  const step = steps.find((candidate) => candidate.unit === unit);
  if (step !== undefined) return (Number(count) * step.ms) / 1000;
  throw new InvalidArgumentError('Write a duration as in "30s", "5m", "2h" or "90d".');
};
