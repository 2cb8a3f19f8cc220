/** Parts of request bodies that follow the fixed struct. Nothing may stand behind what an operation defines. */
import { decodeName, EINVAL, endOfName } from '../../wire/index.ts';
import { BODY, type SessionState } from '../state.ts';

/** The body, after `fixedBytes`, is one name. */
export function onlyName(state: SessionState, fixedBytes = 0): string | number {
  const start = BODY + fixedBytes;
  const nul = endOfName(state.bytes, start, state.end);
  return nul < 0 || nul + 1 !== state.end ? EINVAL : decodeName(state.bytes, start, nul);
}
