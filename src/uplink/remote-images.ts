/** Images, as a host asks a manager for those of its VMs. */
import type { BlobBytes, BlobOptions } from '../records/index.ts';
import { StoreError } from '../store/index.ts';
import type { Caller } from './calls.ts';
import { MalformedFrame } from './frames.ts';
import type { StoreCalls } from './store-calls.ts';
import { RemoteRefusal, UplinkError } from './uplink-error.ts';

/** As `blob` of `ImageBytes`, of the image of a VM of this host. HOST_UNAVAILABLE where asking again may help. */
export const remoteBlob = async (
  caller: Caller<StoreCalls> | undefined,
  args: { readonly vm: string; readonly digest: string },
  { offset, signal }: BlobOptions,
): Promise<BlobBytes> => {
  try {
    if (caller === undefined) throw new UplinkError('UPLINK_LOST', 'no manager is connected');
    const { answer, items } = await caller.begin('imageBlob', { ...args, offset }, signal);
    return { ...answer, bytes: refusing(items) };
  } catch (error) {
    throw toRefusal(error);
  }
};

async function* refusing(items: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void> {
  try {
    yield* items;
  } catch (error) {
    throw toRefusal(error);
  }
}

const toRefusal = (error: unknown): unknown => {
  if (error instanceof StoreError && error.code === 'STORE_UNAVAILABLE')
    return new RemoteRefusal('HOST_UNAVAILABLE', error.message);
  if (error instanceof UplinkError && error.code === 'UPLINK_LOST')
    return new RemoteRefusal('HOST_UNAVAILABLE', 'the connection to the manager ended before the image was here');
  if (error instanceof UplinkError || error instanceof MalformedFrame)
    return new RemoteRefusal('HOST_UNSUPPORTED', `the manager gives no image: ${error.message}`);
  return error;
};
