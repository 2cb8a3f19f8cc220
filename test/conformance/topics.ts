/** Every topic of the suite, in the order in which it runs. */
import { attributes } from './cases/attributes.ts';
import { audit } from './cases/audit.ts';
import { changes } from './cases/changes.ts';
import { concurrency } from './cases/concurrency.ts';
import { consistency } from './cases/consistency.ts';
import { guestFiles } from './cases/guest-files.ts';
import { names } from './cases/names.ts';
import { ownership } from './cases/ownership.ts';
import { permissions } from './cases/permissions.ts';
import { quotas } from './cases/quotas.ts';
import { renames } from './cases/renames.ts';
import { rights } from './cases/rights.ts';
import { special } from './cases/special.ts';
import { truncation } from './cases/truncation.ts';
import { xattrs } from './cases/xattrs.ts';
import type { Topic } from './suite.ts';

export const topics: readonly Topic[] = [
  names,
  attributes,
  permissions,
  special,
  ownership,
  guestFiles,
  rights,
  renames,
  truncation,
  quotas,
  consistency,
  concurrency,
  changes,
  xattrs,
  audit,
];
