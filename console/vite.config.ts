/** `npm run console` builds with this; what it makes is packed by scripts/console.ts. */
import path from 'node:path';
import type { InlineConfig } from 'vite';

const root = import.meta.dirname;

export default {
  root,
  // No warnings of plugins' making, no file of the user's, nothing that is asked for elsewhere.
  configFile: false,
  envDir: false,
  logLevel: 'warn',
  oxc: { jsx: { runtime: 'automatic', importSource: 'preact' } },
  build: {
    outDir: path.join(root, '../.cache/console/site'),
    emptyOutDir: true,
    target: 'es2023',
    // A policy without `data:` and `unsafe-inline` lets nothing be put into the page.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
  },
} satisfies InlineConfig;
