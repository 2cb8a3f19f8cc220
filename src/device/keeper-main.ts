/**
 * The keeper process: `node src/device/keeper-main.ts ADMIN_SOCKET [--with-stdin]`. With `--with-stdin` it ends when its
 * standard input does, else by a signal.
 */
import { buildOf } from '../parts/index.ts';
import { Keeper } from './keeper.ts';

const [adminPath, option] = process.argv.slice(2);
if (adminPath === undefined) throw new Error('give the path of the admin socket');
const keeper = new Keeper(adminPath, buildOf('keeper'));
keeper.onLeft = () => process.exit(0);
if (option === '--with-stdin') keeper.endWith(0);
keeper.run();
