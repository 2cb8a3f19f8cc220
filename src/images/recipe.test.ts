import assert from 'node:assert/strict';
import { test } from 'node:test';
import { recipeOf } from './recipe.ts';

test('recipeOf refuses what is no recipe when every object has a member of that name', () => {
  const recipes = { tiny: ['/bin/tiny'] } as const;
  assert.deepEqual(recipeOf(recipes, 'tiny'), ['/bin/tiny']);
  for (const name of ['constructor', 'toString', '__proto__', 'big'])
    assert.throws(() => recipeOf(recipes, name), {
      code: 'HOST_INVALID',
      message: `there is no recipe "${name}"; there are: tiny`,
    });
});
