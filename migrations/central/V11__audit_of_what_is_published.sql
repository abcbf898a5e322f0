-- What sites are told to use is audited like sites and logins. The parts of the catalogue are not: an import changes
-- thousands at once, and each import is a file that can be read again.

SET LOCAL ROLE loupe_owner;

SELECT loupe.audited('loupe.recipes'), loupe.audited('loupe.recipe_assignments'), loupe.audited('loupe.kits'),
    loupe.audited('loupe.access_policies');

RESET ROLE;
