/* Search: placeholder until the page is written. */
"use strict";
