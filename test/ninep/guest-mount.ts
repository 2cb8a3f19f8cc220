/** The mount helper for guests, as tests build it. */
import path from 'node:path';
import { compile } from '../compile.ts';

const source = path.join(import.meta.dirname, '../../guest/mount.porthole.c');

/** Path of the helper, alone in a directory that can be shared with a guest. */
export const mountHelper = (): string => compile(source, ['-static', '-Os']);
