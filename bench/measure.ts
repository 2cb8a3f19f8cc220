/** Compares two sides in rounds that take turns, so that what else the machine does meets both alike. */

/** What one side showed in one round. */
export interface Sample {
  /** How many operations it rests on. */
  readonly n: number;
  /** Median, or the one figure there is (a rate, a size). */
  readonly p50: number;
  readonly p99?: number | undefined;
}

export type Unit = 'us' | 'op/s' | 'KiB' | 'ms CPU' | 'reads' | 'MiB/s';
/** Bounds the ratio of ours to the peer's. */
export type Target = { readonly atMost: number } | { readonly atLeast: number };

interface Comparison {
  readonly name: string;
  readonly unit: Unit;
  readonly target?: Target | undefined;
  readonly ours: () => Promise<Sample>;
  readonly peer: () => Promise<Sample>;
}

/** Figures are medians over the rounds. */
export interface Row {
  readonly group: string;
  readonly name: string;
  readonly peerName: string;
  readonly unit: Unit;
  readonly n: number;
  readonly rounds: number;
  readonly ours: Sample;
  readonly peer: Sample;
  /**
   * Ours by the peer's, the median of the rounds' ratios: what else the machine does changes the figures of both from
   * one round to the next by more than they differ.
   */
  readonly ratio: number;
  /** The smallest and the largest ratio of one round. */
  readonly ratioRange: readonly [number, number];
  readonly target?: Target | undefined;
  /** Undefined where there is no target. */
  readonly pass?: boolean | undefined;
}

export interface GroupOptions {
  readonly rounds: number;
  /** Puts a second instance of the peer in our place: ratios must then be about 1. */
  readonly selfTest: boolean;
  readonly print: (line: string) => void;
}

export interface Group {
  readonly letter: string;
  readonly title: string;
  readonly run: (options: GroupOptions) => Promise<Row[]>;
}

export function median(values: readonly number[]): number {
  if (values.length === 0) throw new RangeError('median of no values');
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Nearest-rank percentile, `share` from 0 to 1. */
export function percentile(ascending: ArrayLike<number>, share: number): number {
  if (ascending.length === 0) throw new RangeError('percentile of no values');
  return ascending[Math.min(ascending.length - 1, Math.floor(ascending.length * share))]!;
}

export const meets = (ratio: number, target: Target): boolean =>
  'atMost' in target ? ratio <= target.atMost : ratio >= target.atLeast;

/** Two that cost nothing are alike. */
const divide = (ours: number, peer: number): number => (ours === peer ? 1 : ours / peer);

function overRounds(samples: readonly Sample[]): Sample {
  const tails = samples.flatMap(({ p99 }) => (p99 === undefined ? [] : [p99]));
  return {
    n: samples[0]!.n,
    p50: median(samples.map(({ p50 }) => p50)),
    ...(tails.length > 0 ? { p99: median(tails) } : {}),
  };
}

export async function compare(
  { name, unit, target, ours, peer }: Comparison,
  { group, peerName, rounds }: { readonly group: string; readonly peerName: string; readonly rounds: number },
): Promise<Row> {
  const oursSeen: Sample[] = [];
  const peerSeen: Sample[] = [];
  for (let round = 0; round < rounds; round++) {
    oursSeen.push(await ours());
    peerSeen.push(await peer());
  }
  const [a, b] = [overRounds(oursSeen), overRounds(peerSeen)];
  const each = oursSeen.map(({ p50 }, round) => divide(p50, peerSeen[round]!.p50));
  const ratio = median(each);
  return {
    group,
    name,
    peerName,
    unit,
    n: a.n,
    rounds,
    ours: a,
    peer: b,
    ratio,
    ratioRange: [Math.min(...each), Math.max(...each)],
    ...(target ? { target, pass: meets(ratio, target) } : {}),
  };
}
