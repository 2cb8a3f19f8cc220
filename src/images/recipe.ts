import { ImageRefusal } from './error.ts';

/** A program of this machine, and its arguments, that makes an image. */
export type Recipe = readonly [string, ...string[]];
/** By the name that they are asked for by. */
export type Recipes = Readonly<Record<string, Recipe>>;

/** HOST_INVALID. */
export const recipeOf = (recipes: Recipes, name: string): Recipe => {
  if (Object.hasOwn(recipes, name)) return recipes[name]!;
  const names = Object.keys(recipes).toSorted();
  const there =
    names.length === 0 ? 'this machine has none; add an image from a file' : `there are: ${names.join(', ')}`;
  throw new ImageRefusal('HOST_INVALID', `there is no recipe "${name}"; ${there}`);
};
