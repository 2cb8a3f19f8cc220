import assert from 'node:assert/strict';
import type { Field } from '../../src/wire/index.ts';

/** A field of any struct table, by a name that the types can't check; fails when the table has no such field. */
export function fieldOf(table: { readonly fields: readonly string[] }, name: string): Field {
  assert.ok(table.fields.includes(name), `no field "${name}" among ${table.fields.join(', ')}`);
  return (table as unknown as Readonly<Record<string, Field>>)[name]!;
}
