import { checked } from '../../src/uplink/calls.ts';
import { enrolCalls } from '../../src/uplink/enrolment.ts';
import { FrameReader, frameLimits, MalformedFrame } from '../../src/uplink/frames.ts';
import { hostCalls } from '../../src/uplink/host-calls.ts';
import { storeCalls } from '../../src/uplink/store-calls.ts';

const rows = Object.entries({ ...storeCalls, ...hostCalls, ...enrolCalls });

/** Reads `bytes` as frames, and each of them as what every call has: nothing but a MalformedFrame may come out. */
export const fuzzUplink = (bytes: Uint8Array): void => {
  const reader = new FrameReader(frameLimits.enrolBytes);
  const values: unknown[] = [];
  const cut = bytes.length === 0 ? 0 : (bytes[0]! * 31 + bytes.length) % bytes.length;
  try {
    for (const piece of [bytes.subarray(0, cut), bytes.subarray(cut)]) values.push(...reader.push(piece));
  } catch (error) {
    if (!(error instanceof MalformedFrame)) throw error;
  }
  for (const value of values)
    for (const [name, row] of rows)
      for (const schema of Object.values(row)) {
        try {
          checked(schema, value, name);
        } catch (error) {
          if (!(error instanceof MalformedFrame)) throw error;
        }
      }
};
