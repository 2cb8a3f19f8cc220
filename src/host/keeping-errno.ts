/** What programs in a guest are told of a commit that a store did not take. */
import { StoreError } from '../store/index.ts';
import { EIO, ENOSPC } from '../wire/index.ts';

/** As a file system on that disk would: no room, or a disk that fails. */
export const keepingErrno = (failure: Error): number =>
  failure instanceof StoreError && failure.code === 'STORE_FULL' ? ENOSPC : EIO;
