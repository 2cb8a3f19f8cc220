import { HostRefusal } from './host-error.ts';

/** A program of this machine, and its arguments, that makes an image. */
export type Recipe = readonly [string, ...string[]];

/** HOST_INVALID. */
export const recipeOf = (recipes: Readonly<Record<string, Recipe>>, name: string): Recipe => {
  if (Object.hasOwn(recipes, name)) return recipes[name]!;
  const names = Object.keys(recipes).toSorted();
  const there = names.length === 0 ? 'this host has none; add an image from a file' : `there are: ${names.join(', ')}`;
  throw new HostRefusal('HOST_INVALID', `there is no recipe "${name}"; ${there}`);
};
